package ganbauth_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		"B-08 empty client id":           {"", clientSecret, ganbauth.AuthBasic, nil, "client id is empty"},
		"B-08 client id of 129":          {long, clientSecret, ganbauth.AuthBasic, nil, "longer than 128"},
		"B-66 D-04 empty secret":         {clientID, "", ganbauth.AuthBasic, nil, "client secret is empty"},
		"B-66 blank secret":              {clientID, " \t", ganbauth.AuthBasic, nil, "client secret is empty"},
		"B-08 secret of 129":             {clientID, long, ganbauth.AuthPost, nil, "longer than 128"},
		"control character in id":        {"a\r\nb", clientSecret, ganbauth.AuthPost, nil, "control character"},
		"B-25 colon in id, basic":        {"a:b", clientSecret, ganbauth.AuthBasic, nil, "colon"},
		"no method":                      {clientID, clientSecret, 0, nil, "AuthBasic or AuthPost"},
		"no salt":                        {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.Salt = "" }, "Salt is missing"},
		"http on a private address":      {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "http://10.0.0.1" }, "must be https"},
		"B-09 D-47 http":                 {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "http://bank.test" }, "must be https"},
		"B-09 userinfo":                  {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "https://u:p@bank.test" }, "userinfo"},
		"B-09 host smuggled by the path": {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.TokenPath = "@evil.example/token" }, "slash"},
		"host extended by the path":      {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.TokenPath = ".evil.example/token" }, "slash"},
		"relative":                       {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "/auth" }, "absolute URL"},
		"no URL":                         {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthBaseURL = "https://[" }, "no URL"},
		"fragment":                       {clientID, clientSecret, ganbauth.AuthBasic, func(c *ganbauth.Config) { c.AuthPath = "/a#b" }, "fragment"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			if test.change != nil {
				test.change(&cfg)
			}
			c, err := ganbauth.NewConnector(test.id, test.secret, test.method, cfg)
			require.Nil(t, c)
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), clientSecret, "B-40")
		})
	}
	t.Run("all at once", func(t *testing.T) {
		_, err := ganbauth.NewConnector("", "", 0, ganbauth.Config{AuthBaseURL: "http://bank.test"})
		for _, want := range []string{"client id", "client secret", "method", "Salt", "https"} {
			require.ErrorContains(t, err, want)
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
	for name, cfg := range map[string]ganbauth.Config{
		"https://api.gmo-aozora.com/ganb/api/auth/v1/token":     ganbauth.Production("s"),
		"https://stg-api.gmo-aozora.com/ganb/api/auth/v1/token": ganbauth.Staging("s"),
		"https://api.sunabar.gmo-aozora.com/auth/v1/token":      ganbauth.Sunabar("s"),
	} {
		require.Equal(t, name, cfg.AuthBaseURL+cfg.TokenPath)
		_, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthPost, cfg)
		require.NoError(t, err)
	}
}
