-- Put a marker over a slot that still has the head that the caller saw: 24 bytes, or all of what is
-- shorter, for a damaged entry's few bytes open other slots as well. Nil: done; else what stands there.
local there = redis.call('GET', KEYS[1])
if there and string.sub(there, 1, 24) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return nil
end
return there or ''
