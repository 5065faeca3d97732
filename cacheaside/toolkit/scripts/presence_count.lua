-- How many have not ended. KEYS: a user's connections, or the index.
local time = redis.call('TIME')
return redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', time[1] * 1000000 + time[2]), '+inf')
