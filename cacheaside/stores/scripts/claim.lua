-- Put a marker over what stands in a slot, unless holds do: ARGV[1] is what they begin with.
-- Nil: done; else the holds.
if redis.pcall('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then
  return redis.call('GET', KEYS[1])
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return nil
