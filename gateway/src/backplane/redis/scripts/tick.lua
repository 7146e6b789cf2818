-- tick.lua: counts the visitors and publishes the snapshot of a slot.
--
-- Why a script: at most one snapshot may stand for a slot, whoever sends this, however late or often; so lease, slot
-- and the last snapshot are compared where the snapshot is written, and in the same step.
--
-- After a hole (more than two intervals since the last tick: Redis, or all nodes, were away) nobody was refreshed
-- for so long, and counting as usual would lose those who stayed. The window is longer by the hole until each live
-- node has refreshed its sockets' visitors once, at most for one window.
--
-- KEYS  1 ticker (string)  2 snapshot (string)  3 visitors (zset)  4 nodes (zset)  5 touched (hash)
--       6 events (stream)
-- ARGV  1 node  2 epoch  3 slot  4 interval, ms  5 window, ms  6 member lease, ms
-- Returns {'published', now, epoch, visitors} | {'already done', now} | {'wrong slot', now} | {'fenced'}

local ticker_key, snapshot_key, visitors, nodes, touched, events = unpack(KEYS)
local node, epoch, slot = ARGV[1], ARGV[2], tonumber(ARGV[3])
local interval, window, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

expect('zset', visitors, 'visitors')
expect('zset', nodes, 'nodes')
expect('hash', touched, 'touched')
expect('stream', events, 'events')
local ticker = read_ticker(ticker_key)
local last = read_snapshot(snapshot_key)

-- Inv. FENCE
if not holds_lease(ticker, node, epoch) then
  return { 'fenced' }
end
if slot ~= now - now % interval then
  return { 'wrong slot', int(now) }
end
if last and last.slot >= slot then
  -- Inv. SLOT: it has its snapshot; or the clock stepped back a little, and we wait until it has caught up.
  if last.slot - now <= 2 * interval then
    return { 'already done', int(now) }
  end
  -- The clock jumped back too far to wait for it. A new epoch makes the smaller slots newer all the same.
  ticker.epoch = math.max(ticker.epoch + 1, last.epoch + 1, now)
  write_ticker(ticker_key, ticker)
  last = { slot = 0, at = now, hole = 0, since = 0, epoch = 0 }
end

-- Whether each live node has refreshed its visitors since.
local function all_touched(since)
  settle_members(nodes, lease)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', nodes, '(' .. int(now), '+inf')) do
    local at = tonumber(redis.call('HGET', touched, member) or 0)
    if not at or at < since then
      return false
    end
  end
  return true
end

local hole, since = 0, 0
if last then
  hole, since = last.hole, last.since
  if now - last.at > 2 * interval then
    hole, since = math.min(hole + now - last.at, HOLE_MS_MAX), now
  elseif hole > 0 and (now - since > window or all_touched(since)) then
    hole, since = 0, 0
  end
end

-- Some of those that left, and some of those that a clock before its jump put into the future: both bounded, what
-- is left waits for the next tick. Nobody's count depends on either.
local window_begin = now - window - hole
local gone = redis.call('ZRANGEBYSCORE', visitors, '-inf', '(' .. int(window_begin), 'LIMIT', 0, TRIM_VISITORS_MAX)
if #gone > 0 then
  redis.call('ZREM', visitors, unpack(gone))
end
for _, visitor in ipairs(redis.call('ZRANGEBYSCORE', visitors, '(' .. int(now), '+inf', 'LIMIT', 0, TRIM_VISITORS_MAX)) do
  redis.call('ZADD', visitors, int(now), visitor)
end
if redis.call('HLEN', touched) > redis.call('ZCARD', nodes) then
  for _, member in ipairs(redis.call('HKEYS', touched)) do
    if not redis.call('ZSCORE', nodes, member) then
      redis.call('HDEL', touched, member)
    end
  end
end

local count = redis.call('ZCOUNT', visitors, int(window_begin), '+inf')
local entries = 1
if redis.call('EXISTS', events) == 1 then
  local info = redis.call('XINFO', 'STREAM', events)
  for i = 1, #info, 2 do
    if info[i] == 'entries-added' then
      entries = info[i + 1] + 1
    end
  end
end

local timestamp = rfc3339(now)
local data = string.format('{"active_visitors":%s,"timestamp":"%s"}', int(count), timestamp)
append(events, 'realtime_update', data, 'slot', int(slot), 'epoch', int(ticker.epoch), 'entries', int(entries))
redis.call('SET', snapshot_key, string.format(
  '{"active_visitors":%s,"timestamp":"%s","slot":%s,"epoch":%s,"at":%s,"hole":%s,"since":%s}',
  int(count), timestamp, int(slot), int(ticker.epoch), int(now), int(hole), int(since)
))
return { 'published', int(now), int(ticker.epoch), int(count) }
