-- A message is done with. KEYS: the log. ARGV: the group, its id. Returns 1 unless it had been before.
return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
