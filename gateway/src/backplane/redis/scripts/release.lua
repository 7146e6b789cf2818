-- release.lua: gives the ticker's lease back at once, if it is still the present one.
--
-- Why a script: a release that arrives late must not end somebody else's reign. The epoch stays: the next holder's
-- must be larger.
--
-- KEYS  1 ticker (string)
-- ARGV  1 node  2 epoch
-- Returns 'released' | 'not held'

local ticker = read_ticker(KEYS[1])
if ticker.node ~= ARGV[1] or int(ticker.epoch) ~= ARGV[2] then
  return 'not held'
end
ticker.expiry = 0
write_ticker(KEYS[1], ticker)
return 'released'
