-- set_counts.lua: states how many sockets of some addresses a node holds now.
--
-- Why a script: one round trip and one step for a batch; each address is written like admit.lua writes it.
--
-- KEYS  1 told (hash)  then the addresses (hashes: node -> its sockets)
-- ARGV  1 who speaks  2 number of the statement  3 node, then for each address its count; 0 removes
-- Returns 'done'

expect('hash', KEYS[1], 'told')
for i = 2, #KEYS do
  expect('hash', KEYS[i], 'ip')
end
refuse_if_late(KEYS[1], ARGV[1], tonumber(ARGV[2]))
for i = 2, #KEYS do
  local address, count = KEYS[i], ARGV[i + 2]
  if count == '0' then
    redis.call('HDEL', address, ARGV[3])
  else
    redis.call('HSET', address, ARGV[3], count)
    redis.call('EXPIRE', address, ADDRESS_TTL_SECONDS)
  end
end
return 'done'
