-- commit.lua for a large value, which lies in KEYS[2] already: passing it through Lua would cost
-- a hundred times a SET. ARGV[2] is its head: two loads of one key may stage at the same time.
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1]
  and redis.call('GETRANGE', KEYS[2], 0, #ARGV[2] - 1) == ARGV[2] then
  redis.call('RENAME', KEYS[2], KEYS[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 1
end
return 0
