-- Sixteen pipelined reads of one key on each connection, without waiting for responses in between.
local requests

function init()
   requests = string.rep(wrk.format("GET"), 16)
end

function request()
   return requests
end
