-- The dead letters. KEYS: they. ARGV: the id after which to begin ("" for the first), how many.
-- Returns {id, message, what was wrong, tries, consumer} for each.
local found = {}
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', ARGV[2])) do
  local one = {}
  for i = 1, #entry[2], 2 do one[entry[2][i]] = entry[2][i + 1] end
  found[#found + 1] = {entry[1], one['m'], one['error'], one['tries'], one['consumer']}
end
return found
