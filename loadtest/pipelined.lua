-- Sixteen reads of one key at a time on each connection, without waiting for answers in between.
local requests

function init()
   requests = string.rep(wrk.format("GET"), 16)
end

function request()
   return requests
end
