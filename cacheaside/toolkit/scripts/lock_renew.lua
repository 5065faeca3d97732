-- Prolong a lock that is still ours. KEYS: the lock. ARGV: token, ms to hold it.
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
