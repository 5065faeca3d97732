-- Exact sliding windows: a sorted set of what was let in, scored by the server's microseconds.
-- KEYS: the log. ARGV: 1 to count a hit or 0 to look, its cost, then each limit with its window in us.
-- Returns whether it is let in, then for each limit: what is left, us until all of it is, us to wait.
local function text(number) return string.format('%.0f', number) end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local newest = tonumber(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or '-1')
local cost = tonumber(ARGV[2])

local answer, allowed, longest = { 1 }, true, 0
for i = 3, #ARGV, 2 do
  local limit, window = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local used = redis.call('ZCOUNT', KEYS[1], '(' .. text(now - window), '+inf')
  local wait = 0
  if used + cost > limit then
    -- There is room when this one, counted from the newest, has left the window.
    local last = cost - limit - 1
    wait = redis.call('ZRANGE', KEYS[1], last, last, 'WITHSCORES')[2] + window - now
    allowed = false
  end
  local reset = 0
  if used > 0 then reset = newest + window - now end
  longest = math.max(longest, window)
  answer[#answer + 1] = limit - used
  answer[#answer + 1] = reset
  answer[#answer + 1] = wait
end

if not allowed then
  answer[1] = 0
elseif ARGV[1] == '1' then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now - longest))
  local stamp, first, members = text(now), 0, {}
  if newest >= now then first = redis.call('ZCOUNT', KEYS[1], stamp, stamp) end
  for i = first, first + cost - 1 do
    members[#members + 1] = stamp
    members[#members + 1] = stamp .. '-' .. i
    if #members == 4000 then -- what unpack can take is bounded
      redis.call('ZADD', KEYS[1], unpack(members))
      members = {}
    end
  end
  if #members > 0 then redis.call('ZADD', KEYS[1], unpack(members)) end
  redis.call('PEXPIRE', KEYS[1], text(math.ceil(longest / 1000)))
  for i = 3, #ARGV, 2 do
    local at = (i - 3) / 2 * 3 + 2
    answer[at] = answer[at] - cost
    answer[at + 1] = tonumber(ARGV[i + 1])
  end
end
return answer
