-- Some of those online. KEYS: the index. ARGV: cursor, about how many. Returns the next cursor, and users.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local page = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local users = {}
for i = 1, #page[2], 2 do
  if tonumber(page[2][i + 1]) > now then users[#users + 1] = page[2][i] end
end
return { page[1], users }
