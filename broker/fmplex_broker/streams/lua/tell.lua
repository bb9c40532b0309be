-- Send chunks of running jobs to their inboxes, fenced like settle.
-- ARGV: worker, then 5 a chunk: flow, entry, job, inbox, payload. Per chunk 1 (sent) or 0 (not mine any more, or answered).
local me, out = ARGV[1], {}
for i = 2, #ARGV, 5 do
  local mine = #pending(ARGV[i], ARGV[i + 1], ARGV[i + 1], 1, me) == 1
  -- One job has two entries where an enqueue that was sent twice arrives before and after a cancel: nothing comes behind a reply.
  local told = mine and redis.call('EXISTS', P .. 'res:' .. ARGV[i + 2]) == 0
  if told then
    local subs, owner = P .. 'subs:' .. ARGV[i + 2], ARGV[i + 3]
    local to = redis.call('HKEYS', subs)
    if owner ~= '' and redis.call('HEXISTS', subs, owner) == 0 then to[#to + 1] = owner end
    for _, inbox in ipairs(to) do
      local key = P .. 'in:' .. inbox
      redis.call('XADD', key, 'MAXLEN', '~', INBOX_LENGTH, '*', 'j', ARGV[i + 2], 'p', ARGV[i + 4])
      redis.call('PEXPIRE', key, INBOX_TTL)
    end
  end
  out[#out + 1] = told and 1 or 0
end
return out
