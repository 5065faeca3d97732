-- Put something fresh, or nothing, in the place of each key, and announce it, in one step. Holds that stand
-- there stay until they end: a prefix, then for each a name of 12 bytes and its end, 13 digits of ms.
-- ARGV: the prefix; the name of a hold to begin, its ms; the name of one to end; the life of what comes
-- in ms, unless the key had a longer one; how to publish, the channel (no key: it would count as missing
-- while the slot moves) and the message, or ''; then what comes, for each key, '' for nothing.
local prefix, begin, begin_ms, finish, life, publish, channel, message = unpack(ARGV, 1, 8)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #KEYS do
  local key, held, last = KEYS[i], '', 0
  if redis.pcall('GETRANGE', key, 0, #prefix - 1) == prefix then
    local there = redis.call('GET', key)
    for at = #prefix + 1, #there, 25 do
      local name, ends = string.sub(there, at, at + 11), tonumber(string.sub(there, at + 12, at + 24))
      if ends and ends > now and name ~= begin and name ~= finish then
        held, last = held .. string.sub(there, at, at + 24), math.max(last, ends)
      end
    end
  end
  if begin ~= '' then
    local ends = now + begin_ms
    held, last = held .. begin .. string.format('%013d', ends), math.max(last, ends)
  end
  local fresh = ARGV[8 + i]
  if held ~= '' then
    redis.call('SET', key, prefix .. held, 'PX', string.format('%d', last - now))
  elseif fresh == '' then
    redis.call('UNLINK', key)
  else
    local ms = math.max(tonumber(life), redis.call('PTTL', key))
    redis.call('SET', key, fresh, 'PX', string.format('%d', ms))
  end
end
if message ~= '' then
  redis.call(publish, channel, message)
end
return 1
