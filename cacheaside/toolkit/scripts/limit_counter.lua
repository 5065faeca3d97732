-- Sliding counters: hits are counted by fixed windows, and the window before counts for the part of it
-- that a sliding one would still cover. KEYS, ARGV and what is returned: see limit_log.lua.
-- The hash has for each length of window: when the current one began, its count, the count before.
local SLACK = 1e-9 -- what the rounding of doubles may cost

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = tonumber(ARGV[2])

local answer, allowed, longest, fields = { 1 }, true, 0, {}
for i = 3, #ARGV, 2 do
  local limit, window = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local start = now - math.fmod(now, window)
  local current, before = 0, 0
  local began, count, previous =
    string.match(redis.call('HGET', KEYS[1], ARGV[i + 1]) or '', '^(%d+) (%d+) (%d+)$')
  began = tonumber(began)
  if began and began >= start then -- later only if the clock was set back
    start, current, before = began, tonumber(count), tonumber(previous)
  elseif began and began == start - window then
    before = tonumber(count)
  end
  local elapsed = math.max(0, now - start)
  local used = before * (window - elapsed) / window + current
  local wait = 0
  if used + cost > limit + SLACK then
    allowed = false
    if current + cost <= limit then
      wait = math.ceil(window * (1 - (limit - cost - current) / before) - elapsed)
    else -- in the next window, of which this one is the one before
      wait = window - elapsed + math.ceil(window * (1 - (limit - cost) / current))
    end
  end
  local left = math.floor(limit - used + SLACK)
  local reset = 0
  if current > 0 then reset = 2 * window - elapsed elseif before > 0 then reset = window - elapsed end
  if ARGV[1] == '1' and allowed then
    left, reset = left - cost, 2 * window - elapsed
    fields[#fields + 1] = ARGV[i + 1]
    fields[#fields + 1] = string.format('%.0f %.0f %.0f', start, current + cost, before)
  end
  longest = math.max(longest, window)
  answer[#answer + 1] = left
  answer[#answer + 1] = reset
  answer[#answer + 1] = wait
end

if not allowed then
  answer[1] = 0
elseif ARGV[1] == '1' then
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(longest / 500)))
end
return answer
