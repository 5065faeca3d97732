-- A connection of a user is alive. KEYS: the user's connections, scored by the us when they end.
-- ARGV: the connection, us that it lasts, 1 to prolong a known one only, the most connections.
-- Returns whether it was taken, whether the user had none before, and when it ends.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if ARGV[3] == '1' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return { 0, 0, 0 }
end
local before = redis.call('ZCARD', KEYS[1])
local ends = now + ARGV[2]
redis.call('ZADD', KEYS[1], string.format('%.0f', ends), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[4]) -- the first to end, if there are too many
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(ARGV[2] / 1000)))
return { 1, before == 0 and 1 or 0, ends }
