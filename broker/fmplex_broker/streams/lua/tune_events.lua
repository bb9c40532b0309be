-- Read events of a tuning job. ARGV: id, entry after which (or before which) to go on or '', how many, 1: oldest first.
-- Returns entries.
local key, after, many = tune_key(ARGV[1]) .. ':events', ARGV[2], ARGV[3]
if redis.call('EXISTS', tune_key(ARGV[1])) == 1 then say_why_it_waits(ARGV[1]) end
if ARGV[4] == '1' then return redis.call('XRANGE', key, after == '' and '-' or '(' .. after, '+', 'COUNT', many) end
return redis.call('XREVRANGE', key, after == '' and '+' or '(' .. after, '-', 'COUNT', many)
