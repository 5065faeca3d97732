-- Take a lock that nobody holds. KEYS: the lock, the last fencing number. ARGV: token, ms to hold it, ms
-- to keep the number. Returns 1 and the number, or 0 and the ms until the holder's time ends.
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'wanted', 1)
  return { 0, redis.call('PTTL', KEYS[1]) }
end
local time = redis.call('TIME')
-- By the clock, so that it grows even when the last one was lost, and by the last one if that is later.
local fence = math.max(time[1] * 1000000 + time[2], (redis.call('GET', KEYS[2]) or 0) + 1)
local text = string.format('%.0f', fence)
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'fence', text)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], text, 'PX', ARGV[3])
return { 1, fence }
