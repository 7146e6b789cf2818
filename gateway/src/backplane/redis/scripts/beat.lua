-- beat.lua: prolongs a node's membership, or makes it a member, and tells it where it stands.
--
-- Why a script: whether a lease has run out, and prolonging it, must be one step; else a node that was declared dead
-- slips back in with sockets that are no longer counted.
--
-- The schema is written by the first node of all and never raised: a release that changes the contract decides how.
--
-- KEYS  1 nodes (zset)  2 schema (string)  3 generation (string)
-- ARGV  1 node  2 'enter' | 'stay'  3 lease, ms  4 a random generation, in case there is none
-- Returns {'member' | 'gone', generation, live members, now} | {'incompatible'}

local nodes, node, lease = KEYS[1], ARGV[1], tonumber(ARGV[3])

expect('zset', nodes, 'nodes')
expect('string', KEYS[2], 'schema')
expect('string', KEYS[3], 'generation')

redis.call('SET', KEYS[2], SCHEMA_VERSION, 'NX')
local schema = tonumber(redis.call('GET', KEYS[2]))
if not schema then
  corrupt('schema')
end
if math.abs(schema - SCHEMA_VERSION) > 1 then
  return { 'incompatible' }
end

redis.call('SET', KEYS[3], ARGV[4], 'NX')
settle_members(nodes, lease)
local standing = 'gone'
if ARGV[2] == 'enter' or is_member(nodes, node) then
  redis.call('ZADD', nodes, int(now + lease), node)
  standing = 'member'
end
redis.call('ZREMRANGEBYSCORE', nodes, '-inf', int(now))
return { standing, redis.call('GET', KEYS[3]), redis.call('ZCARD', nodes), int(now) }
