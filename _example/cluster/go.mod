module github.com/ganbauth/ganbauth/_example/cluster

go 1.25.0

replace (
	github.com/ganbauth/ganbauth => ../../
	github.com/ganbauth/ganbauth/goredisstore => ../../goredisstore
	github.com/ganbauth/ganbauth/mysqlstore => ../../mysqlstore
	github.com/ganbauth/ganbauth/pgxstore => ../../pgxstore
)

require (
	github.com/alexedwards/scs/goredisstore v0.0.0-20250212122300-421ef1d8611c
	github.com/alexedwards/scs/mysqlstore v0.0.0-20250417082927-ab20b3feb5e9
	github.com/alexedwards/scs/pgxstore v0.0.0-20240316134038-7e11d57e8885
	github.com/alexedwards/scs/v2 v2.9.0
	github.com/ganbauth/ganbauth v0.1.0
	github.com/ganbauth/ganbauth/goredisstore v0.1.0
	github.com/ganbauth/ganbauth/mysqlstore v0.1.0
	github.com/ganbauth/ganbauth/pgxstore v0.1.0
	github.com/go-sql-driver/mysql v1.10.1
	github.com/jackc/pgx/v5 v5.12.0
	github.com/redis/go-redis/v9 v9.19.0
	github.com/stretchr/testify v1.12.1
	go.yaml.in/yaml/v3 v3.0.5
)

require (
	filippo.io/edwards25519 v1.2.0 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/jackc/puddle/v2 v2.2.3 // indirect
	go.uber.org/atomic v1.11.0 // indirect
	golang.org/x/sync v0.22.0 // indirect
	golang.org/x/text v0.41.0 // indirect
)
