-- The generic cell rate algorithm, as a meter: a bucket that a hit fills by its cost and that leaks a
-- limit in a window, evenly. KEYS, ARGV and what is returned: see limit_log.lua.
-- The hash has when it was filled last, and for each limit how full it was then.
local SLACK = 1e-9 -- what the rounding of doubles may cost

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local at = tonumber(redis.call('HGET', KEYS[1], 'at') or '0')
if at > now then now = at end -- the clock was set back
local cost = tonumber(ARGV[2])

local answer, allowed, longest = { 1 }, true, 0
local fields = { 'at', string.format('%.0f', now) }
for i = 3, #ARGV, 2 do
  local limit, window = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local field = ARGV[i] .. '/' .. ARGV[i + 1]
  local level = tonumber(redis.call('HGET', KEYS[1], field) or '0')
  level = math.max(0, level - (now - at) * limit / window)
  local wait = 0
  if level + cost > limit + SLACK then
    wait = math.ceil((level + cost - limit) * window / limit)
    allowed = false
  end
  if ARGV[1] == '1' and allowed then level = level + cost end
  fields[#fields + 1] = field
  fields[#fields + 1] = string.format('%.17g', level)
  longest = math.max(longest, window)
  answer[#answer + 1] = math.floor(limit - level + SLACK)
  answer[#answer + 1] = math.ceil(level * window / limit)
  answer[#answer + 1] = wait
end

if not allowed then
  answer[1] = 0
elseif ARGV[1] == '1' then
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(longest / 1000)))
end
return answer
