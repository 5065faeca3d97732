-- Replace tag tokens and announce it, in one step; a longer life that a token had is kept.
-- KEYS: tokens, then the channel they share. ARGV: life in ms, message, fresh tokens. A hold has
-- exactly the life it asks for, given as a negative number.
local life = tonumber(ARGV[1])
for i = 1, #KEYS - 1 do
  local ms = math.abs(life)
  if life > 0 then
    local left = redis.call('PTTL', KEYS[i])
    if left > ms then ms = left end
  end
  redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', string.format('%d', ms))
end
redis.call('PUBLISH', KEYS[#KEYS], ARGV[2])
return 1
