-- Who is online, scored by when the last connection ends. KEYS: the index. ARGV: the user, that end (0:
-- none is left), '' or the latest end that is to be lowered, ms to keep the index.
-- A later end stands: it is of a connection that has come, or was prolonged, after this one had ended.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if ARGV[3] == '' then
  redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
else
  local ends = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or nil)
  if ends and ends <= tonumber(ARGV[3]) then
    if ARGV[2] == '0' then
      redis.call('ZREM', KEYS[1], ARGV[1])
    else
      redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
    end
  end
end
-- Some of those whose time has ended, so that no call does the work of many.
local over = redis.call('ZCOUNT', KEYS[1], '-inf', string.format('%.0f', now))
if over > 0 then redis.call('ZREMRANGEBYRANK', KEYS[1], 0, math.min(over, 100) - 1) end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
