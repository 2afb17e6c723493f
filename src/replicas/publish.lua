-- The leader's division, table and shares, fenced: without effect under any token but the present one.
-- KEYS 1 state   ARGV 1 member 2 token 3 levels, JSON 4 the table's stamp 5 the table 6 the shares
local raw = redis.call('HGET', KEYS[1], 'state')
local s = raw and cmsgpack.unpack(raw)
if not s or s.leader ~= ARGV[1] or s.token ~= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'levels', cmsgpack.pack(cjson.decode(ARGV[3])), 'stamp', ARGV[4], 'table', ARGV[5],
  'shares', ARGV[6])
return 1
