-- A connection of a user has ended, or all have. KEYS: see presence_online.lua. ARGV: the connection or
-- '', us that one lasts. Returns whether there was one, when the last of the others ends (0: there is
-- none), and the latest end that any connection may have got before now.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local there
if ARGV[1] == '' then
  there = redis.call('DEL', KEYS[1])
else
  there = redis.call('ZREM', KEYS[1], ARGV[1])
end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or '0'
return { there, tonumber(last), now + ARGV[2] }
