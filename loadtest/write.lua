-- Writes only, over the keys load-0 to load-(LOAD_KEYS - 1).
local keys = tonumber(os.getenv("LOAD_KEYS"))
local body = os.getenv("LOAD_BODY")
local count = 0

function init()
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   count = count + 1
   return wrk.format("PUT", "/configs/load-" .. (count % keys), nil, body)
end
