package ganbauth_test

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

func TestNewConnectorRefuses(t *testing.T) {
	good := ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "salt"}
	long := strings.Repeat("x", 129)
	for name, test := range map[string]struct {
		id, secret string
		method     ganbauth.AuthMethod
		change     func(*ganbauth.Config)
		want       string
	}{
		"empty client id":           {"", clientSecret, ganbauth.AuthBasic, nil, "client id is empty"},
		"client id of 129":          {long, clientSecret, ganbauth.AuthBasic, nil, "longer than 128"},
		"empty secret":              {clientID, "", ganbauth.AuthBasic, nil, "client secret is empty"},
		"blank secret":              {clientID, " \t", ganbauth.AuthBasic, nil, "client secret is empty"},
		"secret of 129":             {clientID, long, ganbauth.AuthPost, nil, "longer than 128"},
		"control character in id":   {"a\r\nb", clientSecret, ganbauth.AuthPost, nil, "control character"},
		"colon in id, basic":        {"a:b", clientSecret, ganbauth.AuthBasic, nil, "colon"},
		"another scheme":            {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "ftp://127.0.0.1" }, "must be https"},
		"a path without a slash":    {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthPath = "a" }, "AuthPath must begin with a slash"},
		"no method":                 {clientID, clientSecret, 0, nil, "AuthBasic or AuthPost"},
		"no salt":                   {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.Salt = "" }, "Salt is missing"},
		"http on a private address": {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "http://10.0.0.1" }, "must be https"},
		"http":                      {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "http://bank.test" }, "must be https"},
		"userinfo":                  {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "https://u:p@bank.test" }, "userinfo"},
		"host smuggled by the path": {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.TokenPath = "@evil.example/token" }, "slash"},
		"host extended by the path": {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.TokenPath = ".evil.example/token" }, "slash"},
		"relative":                  {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "/auth" }, "absolute URL"},
		"a query before the path":   {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL += "?" }, "without a query"},
		"a path that is no URL":     {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.TokenPath = "/%zz" }, "TokenPath must be a path"},
		"no URL":                    {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "https://[" }, "no URL"},
		"a port that there is not":  {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "https://bank.test:65536/a" }, "a port from 1 to 65535"},
		"a port without a host":     {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "https://:443" }, "must have a host"},
		"fragment":                  {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthPath = "/a#b" }, "fragment"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			if test.change != nil {
				test.change(&cfg)
			}
			c, err := ganbauth.NewConnector(test.id, test.secret, test.method, cfg)
			require.Nil(t, c)
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), clientSecret)
		})
	}
	t.Run("I12 128 bytes are accepted", func(t *testing.T) {
		for _, method := range []ganbauth.AuthMethod{ganbauth.AuthBasic, ganbauth.AuthPost} {
			_, err := ganbauth.NewConnector(long[:128], long[:128], method, good)
			require.NoError(t, err)
		}
		_, err := ganbauth.NewConnector("i", "s", ganbauth.AuthBasic, good)
		require.NoError(t, err)
		_, err = ganbauth.NewConnector("a:b", clientSecret, ganbauth.AuthPost, good)
		require.NoError(t, err)
	})
	t.Run("all at once", func(t *testing.T) {
		_, err := ganbauth.NewConnector("", "", 0, ganbauth.Config{AuthBaseURL: "http://bank.test"})
		for _, want := range []string{"client id", "client secret", "method", "Salt", "https"} {
			require.ErrorContains(t, err, want)
		}
	})
	t.Run("H8 each fault is reported once", func(t *testing.T) {
		for _, base := range []string{"http://bank.test", "/auth", "https://[", "https://u:p@bank.test", ""} {
			_, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: base, AuthPath: "a", TokenPath: "t"})
			lines := strings.Split(err.Error(), "\n")
			require.Len(t, lines, 4, "Salt, AuthBaseURL and two paths: %v", err)
			for _, line := range lines {
				require.Equal(t, 1, strings.Count(line, "ganbauth: "), line)
				require.Equal(t, 1, strings.Count(err.Error(), line))
			}
		}
	})
	t.Run("http on loopback", func(t *testing.T) {
		for _, host := range []string{"localhost:8080", "127.0.0.1", "127.0.0.2:1", "[::1]:80"} {
			cfg := good
			cfg.AuthBaseURL = "http://" + host
			_, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthBasic, cfg)
			require.NoError(t, err, host)
		}
	})
}

func TestLoadConfig(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "conf.json")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	got, err := ganbauth.LoadConfig(write(`{"SALT":"s3cret","AUTH_BASE_URL":"https://bank.test","AUTH_PATH":"/a","TOKEN_PATH":"/t","JWT_ISSUER":"i"}`))
	require.NoError(t, err)
	require.Equal(t, ganbauth.Config{AuthBaseURL: "https://bank.test", AuthPath: "/a", TokenPath: "/t", JWTIssuer: "i", Salt: "s3cret"}, got)
	for text, want := range map[string]string{
		`{"SALT":5,"AUTH_PATH":[]}`: "wrong type",
		`{"SALT":"s3cret"`:          "malformed",
		`["s3cret"]`:                "not a JSON object",
		``:                          "not a JSON object",
		`{"SALT":"a","SALT":"b"}`:   "twice",
	} {
		_, err := ganbauth.LoadConfig(write(text))
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "s3cret")
	}
	_, err = ganbauth.LoadConfig("/nowhere/conf.json")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPresets(t *testing.T) {
	for _, c := range []struct {
		cfg           ganbauth.Config
		token, issuer string
	}{
		{ganbauth.Production("s"), "https://api.gmo-aozora.com/ganb/api/auth/v1/token", "https://api.gmo-aozora.com/"},
		{ganbauth.Staging("s"), "https://stg-api.gmo-aozora.com/ganb/api/auth/v1/token", "https://stg-api.gmo-aozora.com/"},
		{ganbauth.Sunabar("s"), "https://api.sunabar.gmo-aozora.com/auth/v1/token", "https://api.sunabar.gmo-aozora.com/"},
	} {
		require.Equal(t, c.token, c.cfg.AuthBaseURL+c.cfg.TokenPath)
		require.Equal(t, c.issuer, c.cfg.JWTIssuer)
		require.Equal(t, "s", c.cfg.Salt)
		_, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthPost, c.cfg)
		require.NoError(t, err)
	}
}

// The bank's Node SDK has JWT_ISSUER twice in its conf.json, and editors on Windows begin
// a file with a byte order mark or save it as UTF-16.
func TestH7ConfigFilesAsTheyAre(t *testing.T) {
	load := func(data string) (ganbauth.Config, error) {
		path := filepath.Join(t.TempDir(), "conf.json")
		require.NoError(t, os.WriteFile(path, []byte(data), 0o600))
		cfg, err := ganbauth.LoadConfig(path)
		if err != nil {
			require.ErrorContains(t, err, path)
			require.Equal(t, 1, strings.Count(err.Error(), "ganbauth: "), "%v", err)
			require.NotContains(t, err.Error(), "s3cret")
		}
		return cfg, err
	}
	const twice = `{"JWT_ISSUER":"https://first.example/","SALT":"s3cret","JWT_ISSUER":"https://last.example/"}`
	for _, text := range []string{twice, "\uFEFF" + twice, "\uFEFF" + strings.ReplaceAll(twice, ",", ",\r\n") + "\r\n"} {
		cfg, err := load(text)
		require.NoError(t, err)
		require.Equal(t, "https://last.example/", cfg.JWTIssuer)
		require.Equal(t, "s3cret", cfg.Salt)
	}
	for name, order := range map[string]interface {
		binary.ByteOrder
		binary.AppendByteOrder
	}{"little": binary.LittleEndian, "big": binary.BigEndian} {
		for _, mark := range []string{"", "\uFEFF"} {
			var data []byte
			for _, unit := range utf16.Encode([]rune(mark + twice)) {
				data = order.AppendUint16(data, unit)
			}
			_, err := load(string(data))
			require.ErrorContains(t, err, "UTF-16", "%s endian, mark %q", name, mark)
		}
	}
	_, err := load("\xff\xfe")
	require.ErrorContains(t, err, "UTF-16", "nothing, in UTF-16")
	_, err = load("\uFEFF\uFEFF" + twice)
	require.ErrorContains(t, err, "not a JSON object")
	_, err = load(strings.Replace(twice, "s3cret", "s3cret\x8c", 1))
	require.ErrorContains(t, err, "not UTF-8")
	for _, text := range []string{strings.ReplaceAll(twice, "JWT_ISSUER", "SALT"), strings.ReplaceAll(twice, "JWT_ISSUER", "x")} {
		_, err = load(text)
		require.ErrorContains(t, err, "twice", "no other name may repeat")
	}
	for _, text := range []string{"", "{", "\uFEFF", "\xff", "\x00"} {
		_, err = load(text)
		require.Error(t, err)
	}
}

// A salt in JSON would be read back, whatever stands in its place.
func TestF3ConfigIsNotForJSON(t *testing.T) {
	cfg := ganbauth.Production("s3cret")
	for name, v := range map[string]any{
		"value": cfg, "pointer": &cfg, "field": struct{ Bank ganbauth.Config }{cfg}, "map": map[string]any{"bank": cfg}, "list": []ganbauth.Config{cfg},
	} {
		data, err := json.Marshal(v)
		require.ErrorContains(t, err, "not to be marshaled", name)
		require.Empty(t, data)
		_, err = xml.Marshal(v)
		require.Error(t, err, name)
		if name != "map" { // gob knows no interfaces of its own accord
			var stream bytes.Buffer
			require.ErrorContains(t, gob.NewEncoder(&stream).Encode(v), "not to be marshaled", name)
			require.NotContains(t, stream.String(), "s3cret")
		}
		requirePrintsNoSecret(t, v, "s3cret")
	}
	var back ganbauth.Config
	require.NoError(t, json.Unmarshal([]byte(`{"AUTH_BASE_URL":"https://bank.test","SALT":"x"}`), &back))
	require.Equal(t, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "x"}, back)
}

// A Connector may be copied, and printed wherever it is.
func TestF1ConnectorPrintsNoSecret(t *testing.T) {
	const secret = "S3CRET-client-secret-of-32-bytes"
	cfg := ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "S3CRET-salt"}
	c, err := ganbauth.NewConnector(clientID, secret, ganbauth.AuthPost, cfg)
	require.NoError(t, err)
	type hidden struct{ bank ganbauth.Connector }
	for name, v := range map[string]any{
		"pointer": c, "value": *c, "list": []ganbauth.Connector{*c}, "map": map[string]any{"bank": *c}, "pointer to pointer": &c,
		"field": struct{ Bank ganbauth.Connector }{*c}, "pointer field": struct{ Bank *ganbauth.Connector }{c},
		"unexported field": hidden{*c}, "pointer to it": &hidden{*c}, "embedded": struct{ ganbauth.Connector }{*c},
		"error": fmt.Errorf("x: %v", *c), "zero": ganbauth.Connector{}, "nil": (*ganbauth.Connector)(nil),
	} {
		t.Run(name, func(t *testing.T) { requirePrintsNoSecret(t, v, secret, "S3CRET-salt") })
	}
	copied := *c
	require.Equal(t, "ganbauth.Connector(https://bank.test/authorization)", fmt.Sprint(copied))
	_, err = copied.OAuthAuthorization("s", "openid", callbackURI)
	require.NoError(t, err)
}
