-- A user's connections that have not ended, the first to end first. KEYS: see presence_online.lua.
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', time[1] * 1000000 + time[2]), '+inf')
