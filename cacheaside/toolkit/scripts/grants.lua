-- One step on the grants of a user, which all lie in one hash: field ID is what a grant holds, and field
-- ID. is its row: "born seen idle last sum hash", in microseconds of this server's clock. The sum is of
-- the times, and the hash is that of the one token that is valid.
-- KEYS: the user's hash; where the token in hand left its successor when it was rotated, if it was.
-- ARGV: the step, the grant's id, the hash of the token in hand, and what the step takes.
-- Nil: there is none, or it has ended. -1: what is there is damaged.
local user, left = KEYS[1], KEYS[2]
local step, id, hash = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function text(number)
  return string.format('%.0f', number)
end

local function read(row)
  local born, seen, idle, last, sum, valid = string.match(row or '', '^(%d+) (%d+) (%d+) (%d+) (%d+) (%x+)$')
  if not born or text(born + seen + idle + last) ~= sum then
    return nil, -1
  end
  if now >= tonumber(idle) then  -- which never comes after last
    return nil, false
  end
  return {born = born, seen = seen, idle = idle, last = last, hash = valid}
end

-- Also of what is no hash at all: somebody else's, or a fault's.
local function foreign(reply)
  return type(reply) == 'table' and reply.err and string.find(tostring(reply.err), 'WRONGTYPE', 1, true)
end

local function find()
  local got = redis.pcall('HMGET', user, id .. '.', id)
  if got.err then
    return nil, foreign(got) and -1 or got
  end
  if not got[1] and not got[2] then
    return nil, false
  end
  local row, why = read(got[1])
  if not row then
    return nil, why
  end
  if not got[2] then
    return nil, -1
  end
  row.data = got[2]
  return row
end

-- The token may be one that was rotated a moment ago: its successor, masked, and the hash of that. When the
-- moment ends is written twice: a fault must not prolong it.
local function successor()
  local there = redis.pcall('GET', left)
  local till, again, masked, next = string.match(
    type(there) == 'string' and there or '', '^(%d+) (%d+) (%x+) (%x+)$')
  if till and till == again and now < tonumber(till) and #masked == 64 and #next == 64 then
    return masked, next
  end
end

local function slide(row, ttl)
  row.idle = text(math.min(now + ttl, tonumber(row.last)))
end

local function save(row, ...)
  local sum = text(row.born + row.seen + row.idle + row.last)
  local line = table.concat({row.born, row.seen, row.idle, row.last, sum, row.hash}, ' ')
  local done = redis.pcall('HSET', user, id .. '.', line, ...)
  if type(done) == 'table' and done.err then
    return done
  end
  local ms = math.ceil((row.idle - now) / 1000)
  if redis.call('PTTL', user) < ms then
    redis.call('PEXPIRE', user, ms)
  end
end

-- The ids of the live grants, the oldest first; what else lies in the hash is taken out.
local function tidy(most)
  local fields = redis.pcall('HKEYS', user)
  if fields.err and not foreign(fields) then
    return nil, fields
  end
  if fields.err or #fields > 4 * most + 100 then
    redis.call('UNLINK', user)
    return {}
  end
  local live, known, junk = {}, {}, {}
  for _, field in ipairs(fields) do
    if string.sub(field, -1) == '.' then
      local row = read(redis.call('HGET', user, field))
      local name = string.sub(field, 1, -2)
      if row and redis.call('HEXISTS', user, name) == 1 then
        known[field], known[name] = true, true
        live[#live + 1] = {name, tonumber(row.born)}
      end
    end
  end
  for _, field in ipairs(fields) do
    if not known[field] then
      redis.call('HDEL', user, field)
    end
  end
  table.sort(live, function(a, b)
    return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1])
  end)
  return live
end

-- ARGV: data, idle and whole life, the most grants of a user. Reply: born, how many had to go.
if step == 'add' then
  local ttl, most = tonumber(ARGV[5]), tonumber(ARGV[7])
  local live, failed = tidy(most)
  if failed then
    return failed
  end
  local gone = math.max(0, #live - most + 1)
  for i = 1, gone do
    redis.call('HDEL', user, live[i][1], live[i][1] .. '.')
  end
  -- Later than any before it, whatever the clock says: which is the oldest must be known.
  local born = text(math.max(now, #live > 0 and live[#live][2] + 1 or 0))
  local row = {born = born, seen = born, last = text(now + ARGV[6]), hash = hash}
  slide(row, ttl)
  return save(row, id, ARGV[4]) or {row.born, gone}
end

-- Reply: 1 if there was anything.
if step == 'clear' then
  return redis.call('UNLINK', user)
end

-- Reply: how many are damaged, then id, born, seen, data of each.
if step == 'list' then
  local all = redis.pcall('HGETALL', user)
  if all.err then
    return foreign(all) and {1} or all
  end
  local held, reply = {}, {0}
  for i = 1, #all, 2 do
    held[all[i]] = all[i + 1]
  end
  for field, line in pairs(held) do
    if string.sub(field, -1) == '.' then
      local name = string.sub(field, 1, -2)
      local row, why = read(line)
      if row and held[name] then
        reply[#reply + 1] = {name, row.born, row.seen, held[name]}
      elseif row or why then
        reply[1] = reply[1] + 1
      end
    end
  end
  return reply
end

local row, why = find()

-- By its id alone where there is no hash. Reply: 1 if it was there.
if step == 'drop' then
  if type(why) == 'table' then
    return why
  end
  if not row or (hash ~= '' and hash ~= row.hash and not successor()) then
    return 0
  end
  redis.call('HDEL', user, id, id .. '.')
  return 1
end

if not row then
  return why
end
local ours = hash == row.hash

-- ARGV: idle life from now on, 0 leaves it; whether it was seen.
-- Reply: born, seen, data, and for a token that was rotated its successor.
if step == 'touch' then
  local next = not ours and successor()
  if not ours and not next then
    return false
  end
  local ttl, seen = tonumber(ARGV[4]), ARGV[5] == '1'
  if seen then
    row.seen = text(now)
  end
  if ttl > 0 then
    slide(row, ttl)
  end
  if seen or ttl > 0 then
    -- A server that is full still knows who is logged in.
    local failed = save(row)
    if failed and not string.find(tostring(failed.err), 'OOM', 1, true) then
      return failed
    end
  end
  return {row.born, row.seen, row.data, next or nil}
end

-- ARGV: how the data must still begin, new data. Reply: 1 and both times, or 0 and what is there.
if step == 'replace' then
  if not ours and not successor() then
    return false
  end
  if string.sub(row.data, 1, #ARGV[4]) ~= ARGV[4] then
    return {0, row.born, row.seen, row.data}
  end
  redis.call('HSET', user, id, ARGV[5])
  return {1, row.born, row.seen}
end

-- ARGV: the new token's hash; its secret for who has the old one, and for how long; idle life; whether a
-- token ends the grant that is older than the last one of its line, or was rotated longer ago. Reply: what
-- was done, born, seen, data, and the successor if it had one.
if step == 'rotate' then
  if ours then
    local grace = tonumber(ARGV[6])
    if grace > 0 then
      local till = text(now + grace)
      local kept = till .. ' ' .. till .. ' ' .. ARGV[5] .. ' ' .. ARGV[4]
      redis.call('SET', left, kept, 'PX', math.ceil(grace / 1000))
    end
    row.hash, row.seen = ARGV[4], text(now)
    slide(row, tonumber(ARGV[7]))
    return save(row) or {'rotated', row.born, row.seen, row.data}
  end
  local strict = ARGV[8] == '1'
  local next, hash_of_next = successor()
  if next and (not strict or hash_of_next == row.hash) then
    return {'before', row.born, row.seen, row.data, next}
  end
  if strict then
    redis.call('HDEL', user, id, id .. '.')
    return {'replayed', row.born, row.seen, row.data}
  end
  return false
end

return redis.error_reply('ERR unknown step ' .. step)
