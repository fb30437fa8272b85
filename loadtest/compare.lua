-- One request per key for LOAD_KEYS keys, built before the load starts, and then sent in random order, or in sequence
-- if LOAD_IN_ORDER is set. LOAD_REQUESTS selects the server and the operation.
local keys = tonumber(os.getenv("LOAD_KEYS"))
local value = os.getenv("LOAD_VALUE")
local wanted = os.getenv("LOAD_REQUESTS")
local in_order = os.getenv("LOAD_IN_ORDER")
local requests = {}
local count = 0

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local function base64(text)
   return (text:gsub("..?.?", function(part)
      local a, b, c = part:byte(1, 3)
      local bits = a * 65536 + (b or 0) * 256 + (c or 0)
      local out = ""
      for place = 0, 3 do
         local digit = math.floor(bits / 64 ^ (3 - place)) % 64
         out = out .. (place <= #part and alphabet:sub(digit + 1, digit + 1) or "=")
      end
      return out
   end))
end

local make = {
   server_read = function(key) return wrk.format("GET", "/configs/" .. key) end,
   server_write = function(key) return wrk.format("PUT", "/configs/" .. key, nil, '{"value":' .. value .. "}") end,
   openbao_read = function(key) return wrk.format("GET", "/v1/secret/data/" .. key) end,
   openbao_write = function(key)
      return wrk.format("POST", "/v1/secret/data/" .. key, nil, '{"data":' .. value .. "}")
   end,
   etcd_read = function(key)
      return wrk.format("POST", "/v3/kv/range", nil, '{"key":"' .. base64(key) .. '"}')
   end,
   etcd_write = function(key)
      return wrk.format("POST", "/v3/kv/put", nil,
         '{"key":"' .. base64(key) .. '","value":"' .. base64(value) .. '"}')
   end,
}

function init()
   wrk.headers["Content-Type"] = "application/json"
   for number = 0, keys - 1 do requests[number] = make[wanted]("load-" .. number) end
end

function request()
   if not in_order then return requests[math.random(0, keys - 1)] end
   count = count + 1
   return requests[count % keys]
end
