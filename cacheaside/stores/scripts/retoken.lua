-- Put a fresh token in the place of a dead one, or of nothing. Nil: done; else what stands there.
local there = redis.call('GET', KEYS[1])
if there and there ~= ARGV[1] then
  return there
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return nil
