-- Give a lock back that is still ours. KEYS: the lock. ARGV: token. Returns 2 if somebody else asked for
-- it meanwhile, 1 if nobody did, 0 if it was not ours.
local lock = redis.call('HMGET', KEYS[1], 'token', 'wanted')
if lock[1] == ARGV[1] then
  redis.call('DEL', KEYS[1])
  return lock[2] and 2 or 1
end
return 0
