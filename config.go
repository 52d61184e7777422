package ganbauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// Config says where the bank is. Its JSON form is the conf.json that every official SDK of the bank reads.
// It is copied when used and safe to share.
type Config struct {
	// AuthBaseURL is the root of the authorization server, https (http only on a loopback address).
	AuthBaseURL string `json:"AUTH_BASE_URL"`
	// AuthPath and TokenPath follow AuthBaseURL. Defaults: "/authorization" and "/token".
	AuthPath  string `json:"AUTH_PATH"`
	TokenPath string `json:"TOKEN_PATH"`
	// JWTIssuer is the exact iss of the bank's ID tokens, trailing slash and all (the bank's SDKs disagree about
	// it). OpenID Connect needs it, plain OAuth 2.0 does not.
	JWTIssuer string `json:"JWT_ISSUER"`
	// Salt is the integrator's own secret; it goes into state and into the key of the attempt cookies.
	// All instances of an application need the same one. Required.
	Salt string `json:"SALT"`
	// HTTPClient lends its Transport, and its Timeout where that is shorter than 30 seconds. Its redirect policy
	// and its cookie jar are not used, and it is not changed. Default: net/http's transport with at
	// most 1,024 connections, which are kept, and a limit on response headers.
	HTTPClient *http.Client `json:"-"`
}

// Production is the bank's production environment. The salt is your own secret.
func Production(salt string) Config {
	return Config{
		AuthBaseURL: "https://api.gmo-aozora.com/ganb/api/auth/v1",
		JWTIssuer:   "https://api.gmo-aozora.com/",
		Salt:        salt,
	}.withDefaults()
}

// Staging is the bank's staging environment. The salt is your own secret.
func Staging(salt string) Config {
	return Config{
		AuthBaseURL: "https://stg-api.gmo-aozora.com/ganb/api/auth/v1",
		JWTIssuer:   "https://stg-api.gmo-aozora.com/",
		Salt:        salt,
	}.withDefaults()
}

// Sunabar is the bank's public sandbox. The salt is your own secret.
// The issuer is not documented: set JWTIssuer if ID tokens are refused for theirs.
func Sunabar(salt string) Config {
	return Config{
		AuthBaseURL: "https://api.sunabar.gmo-aozora.com/auth/v1",
		JWTIssuer:   "https://api.sunabar.gmo-aozora.com/",
		Salt:        salt,
	}.withDefaults()
}

// LoadConfig reads a conf.json. It reports a file that cannot be read or is not a JSON object of strings, without
// quoting it; what the values are worth is [NewConnector]'s to judge.
func LoadConfig(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("ganbauth: config: %w", err)
	}
	o, err := parseObject(data)
	if err != nil {
		return Config{}, fmt.Errorf("ganbauth: config %s: %w", path, err)
	}
	var cfg Config
	var errs []error
	for name, field := range map[string]*string{
		"AUTH_BASE_URL": &cfg.AuthBaseURL,
		"AUTH_PATH":     &cfg.AuthPath,
		"TOKEN_PATH":    &cfg.TokenPath,
		"JWT_ISSUER":    &cfg.JWTIssuer,
		"SALT":          &cfg.Salt,
	} {
		if *field, _, err = member[string](o, name); err != nil {
			errs = append(errs, fmt.Errorf("ganbauth: config %s: %w", path, err))
		}
	}
	return cfg.withDefaults(), errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.AuthPath == "" {
		c.AuthPath = "/authorization"
	}
	if c.TokenPath == "" {
		c.TokenPath = "/token"
	}
	return c
}

// endpoint joins AuthBaseURL and path as the bank's SDKs do, and refuses what no secret may be sent to.
func (c Config) endpoint(field, path string) (*url.URL, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("ganbauth: config: %s must begin with a slash", field)
	}
	u, err := url.Parse(strings.TrimSuffix(c.AuthBaseURL, "/") + path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("ganbauth: config: AuthBaseURL and %s make no URL", field)
	case u.User != nil:
		return nil, errors.New("ganbauth: config: AuthBaseURL must not contain userinfo")
	case u.Host == "" || u.Fragment != "":
		return nil, fmt.Errorf("ganbauth: config: AuthBaseURL and %s must make an absolute URL without a fragment", field)
	case !secureURL(u):
		return nil, errors.New("ganbauth: config: AuthBaseURL must be https (http only on a loopback address)")
	}
	return u, nil
}

// secureURL reports whether a secret may travel to u.
func secureURL(u *url.URL) bool {
	return u.Scheme == "https" || u.Scheme == "http" && isLoopback(u.Hostname())
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

const redacted = "[redacted]"

// Format implements [fmt.Formatter] and hides the salt, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "ganbauth.Config{AuthBaseURL:%q AuthPath:%q TokenPath:%q JWTIssuer:%q Salt:%s}",
		c.AuthBaseURL, c.AuthPath, c.TokenPath, c.JWTIssuer, redacted)
}

// LogValue implements [slog.LogValuer] and hides the salt.
func (c Config) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// MarshalJSON implements [json.Marshaler] and hides the salt.
func (c Config) MarshalJSON() ([]byte, error) {
	type plain Config
	c.Salt = redacted
	return json.Marshal(plain(c))
}
