-- Say for how long messages have been idle: 0 keeps them, as much as it takes lets others claim them.
-- KEYS: the log. ARGV: group, consumer, ms, 1 if they were not tried at all, then their ids.
-- Returns the ids of those that are this consumer's still; the others are left alone.
local mine = {}
for i = 5, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1]
  if pending then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i],
      'IDLE', ARGV[3], 'RETRYCOUNT', math.max(0, pending[4] - ARGV[4]), 'JUSTID')
    mine[#mine + 1] = ARGV[i]
  end
end
return mine
