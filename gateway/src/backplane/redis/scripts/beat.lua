-- beat.lua: prolongs a node's membership, or makes it a member, and tells it where it stands.
--
-- Why a script: whether a lease has run out, and prolonging it, must be one step; else a node that was declared dead
-- slips back in with sockets that are no longer counted. So it would with an 'enter' that arrives after its successor.
--
-- It tells which process answers: the one that takes another's place may lack what was written last, as one that
-- restarts from a log written every second, or a replica that is promoted. Who is refused INFO does not learn that.
--
-- The schema is written by the first node of all and never raised: a release that changes the contract decides how.
--
-- KEYS  1 nodes (zset)  2 schema (string)  3 generation (string)  4 told (hash)
-- ARGV  1 who speaks  2 number of the beat  3 node  4 'enter' | 'stay'  5 lease, ms
--       6 a random generation, in case there is none
-- Returns {'member' | 'gone', generation, run id, live members, now} | {'incompatible'}

local nodes, node, lease = KEYS[1], ARGV[3], tonumber(ARGV[5])

expect('zset', nodes, 'nodes')
expect('string', KEYS[2], 'schema')
expect('string', KEYS[3], 'generation')
expect('hash', KEYS[4], 'told')

redis.call('SET', KEYS[2], SCHEMA_VERSION, 'NX')
local schema = tonumber(redis.call('GET', KEYS[2]))
if not schema then
  corrupt('schema')
end
if math.abs(schema - SCHEMA_VERSION) > 1 then
  return { 'incompatible' }
end

refuse_if_late(KEYS[4], ARGV[1], tonumber(ARGV[2]))
redis.call('SET', KEYS[3], ARGV[6], 'NX')
settle_members(nodes, lease)
local standing = 'gone'
if ARGV[4] == 'enter' or is_member(nodes, node) then
  redis.call('ZADD', nodes, int(now + lease), node)
  standing = 'member'
end

-- Who has said nothing for as long as anything of it may be under way is forgotten: a process that ended, as a rule.
-- Each member numbers its beats and its statements.
local members = redis.call('ZCARD', nodes)
if redis.call('HLEN', KEYS[4]) > 2 * members then
  local told = redis.call('HGETALL', KEYS[4])
  for i = 1, #told, 2 do
    local at = tonumber(string.match(told[i + 1], ' (%d+)$'))
    if at and at < now - TOLD_KEPT_MS then
      redis.call('HDEL', KEYS[4], told[i])
    end
  end
end
local info = redis.pcall('INFO', 'server')
local run_id = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
return { standing, redis.call('GET', KEYS[3]), run_id, members, int(now) }
