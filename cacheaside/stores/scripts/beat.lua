-- A heartbeat by the write path: what takes no writes sends none. The channel is named like the key.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call(ARGV[3], KEYS[1], ARGV[1])
return 1
