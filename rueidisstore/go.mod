module github.com/ganbauth/ganbauth/rueidisstore

go 1.25.0

replace (
	github.com/ganbauth/ganbauth => ../
	github.com/ganbauth/ganbauth/goredisstore => ../goredisstore
)

require (
	github.com/alexedwards/scs/goredisstore v0.0.0-20250212122300-421ef1d8611c
	github.com/alexedwards/scs/v2 v2.9.0
	github.com/ganbauth/ganbauth v0.1.0
	github.com/ganbauth/ganbauth/goredisstore v0.1.0
	github.com/redis/go-redis/v9 v9.19.0
	github.com/redis/rueidis v1.0.79
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	go.uber.org/atomic v1.11.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.47.0 // indirect
)
