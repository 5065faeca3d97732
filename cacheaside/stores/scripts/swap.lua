-- Put a marker over a slot that still opens with what the caller saw. Nil: done; else what stands there.
local there = redis.call('GET', KEYS[1])
if there and string.sub(there, 1, #ARGV[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return nil
end
return there or ''
