-- Put a mark for at least ARGV[1] milliseconds, if given. Reply: 1 if there is one; anything there is.
if ARGV[1] then
  local left = redis.call('PTTL', KEYS[1])
  if left ~= -1 and left < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
  end
end
return redis.call('EXISTS', KEYS[1])
