-- set_counts.lua: states how many sockets of some addresses a node holds now.
--
-- Why a script: one round trip and one step for a batch; each address is written like admit.lua writes it. As there, an
-- address whose key holds something else costs the others nothing: it is passed over, and named.
--
-- KEYS  1 told (hash)  then the addresses (hashes: node -> its sockets)
-- ARGV  1 who speaks  2 number of the statement  3 node, then for each address its count; 0 removes
-- Returns which addresses were passed over, counted from 0

expect('hash', KEYS[1], 'told')
refuse_if_late(KEYS[1], ARGV[1], tonumber(ARGV[2]))

local passed_over = {}
for i = 2, #KEYS do
  local address, count = KEYS[i], ARGV[i + 2]
  -- One field tells a hash of somebody else's; a key of another type is an error.
  local field = redis.pcall('HRANDFIELD', address)
  if type(field) == 'table' or field and not is_node(field) then
    passed_over[#passed_over + 1] = i - 2
  elseif count == '0' then
    redis.call('HDEL', address, ARGV[3])
  else
    redis.call('HSET', address, ARGV[3], count)
    redis.call('EXPIRE', address, ADDRESS_TTL_SECONDS)
  end
end
return passed_over
