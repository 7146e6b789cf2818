-- admit.lua: lets sockets of an address in, up to the cap over all live members.
--
-- Why a script: two nodes that each see nine must not both let in a tenth. It writes the node's own true count, not a
-- difference: repeating it changes nothing. Counts of nodes that are no members are removed, so nothing leaks when a
-- node dies.
--
-- KEYS  1 nodes (zset)  2 the address (hash: node -> its sockets)  3 told (hash)
-- ARGV  1 node  2 held  3 wanted  4 cap  5 member lease, ms  6 number of the request
-- Returns {'granted'} | {'refused', counted} | {'gone'} | {'late'}

local nodes, address, node = KEYS[1], KEYS[2], ARGV[1]
local held, wanted, cap = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

expect('zset', nodes, 'nodes')
expect('hash', address, 'ip')
expect('hash', KEYS[3], 'told')

settle_members(nodes, tonumber(ARGV[5]))
if not is_member(nodes, node) then
  return { 'gone' }
end
if comes_late(KEYS[3], node, tonumber(ARGV[6])) then
  return { 'late' }
end

local others = 0
local counts = redis.call('HGETALL', address)
for i = 1, #counts, 2 do
  local count = tonumber(counts[i + 1])
  if not count then
    corrupt('ip')
  end
  if counts[i] ~= node then
    if is_member(nodes, counts[i]) then
      others = others + count
    else
      redis.call('HDEL', address, counts[i])
    end
  end
end

-- Inv. CAP
local fits = math.max(cap - others, 0)
local counted = wanted
if wanted > fits then
  counted = math.min(held, fits)
end
if counted > 0 then
  redis.call('HSET', address, node, int(counted))
  redis.call('EXPIRE', address, ADDRESS_TTL_SECONDS)
else
  redis.call('HDEL', address, node)
end
if wanted > fits then
  return { 'refused', int(counted) }
end
return { 'granted' }
