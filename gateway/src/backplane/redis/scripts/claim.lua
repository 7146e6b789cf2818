-- claim.lua: takes the ticker's lease if it is free, prolongs it if the asking node holds it, else only looks.
--
-- Why a script: reading who holds the lease and taking it must be one step, or two nodes take it. The epoch grows
-- with each reign and never falls, not even when Redis forgot the last ones: it is at least the time, and above that
-- of the last snapshot. A lease that ran out is the end of a reign, also for the node that held it. Between its end
-- and now there may have been another reign, under which clients were shown snapshots, and which a Redis that lost its
-- last second, or a promoted replica, does not know of; under the old epoch every relay would refuse what comes.
--
-- KEYS  1 ticker (string)  2 snapshot (string)
-- ARGV  1 node  2 lease, ms
-- Returns {'held' | 'taken', epoch, last slot or 0, now}: 'held' when the asking node holds the lease now

local node, lease = ARGV[1], tonumber(ARGV[2])
local ticker = read_ticker(KEYS[1])
local snapshot = read_snapshot(KEYS[2]) or { slot = 0, epoch = 0 }

local ran_out = ticker.expiry <= now
-- More than one lease ahead: given before the clock jumped back, and worth nothing to others.
local free = ran_out or ticker.expiry > now + lease
if ticker.node ~= node and not free then
  return { 'taken', int(ticker.epoch), int(snapshot.slot), int(now) }
end
if ticker.node ~= node or ran_out then
  -- Inv. FENCE: what a former holder sends from now on carries a smaller epoch.
  ticker.epoch = math.max(ticker.epoch + 1, snapshot.epoch + 1, now)
  ticker.node = node
end
ticker.expiry = now + lease
write_ticker(KEYS[1], ticker)
return { 'held', int(ticker.epoch), int(snapshot.slot), int(now) }
