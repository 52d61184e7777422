package ganbauth

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"unicode/utf8"
)

const minSalt = 16 // bytes; New warns of a shorter one

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

// LoadConfig reads a conf.json, with or without a byte order mark. JWT_ISSUER may occur twice, as
// in the file of the bank's Node SDK: the last one counts. An error says what is wrong without
// quoting the file. Whether the values can be used is for [NewConnector] to say.
func LoadConfig(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("ganbauth: config: %w", err) // which names the path
	}
	o, err := readConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("ganbauth: config %s: %w", path, err)
	}
	var cfg Config
	var errs []error
	for _, m := range []struct {
		name  string
		field *string
	}{
		{"AUTH_BASE_URL", &cfg.AuthBaseURL},
		{"AUTH_PATH", &cfg.AuthPath},
		{"TOKEN_PATH", &cfg.TokenPath},
		{"JWT_ISSUER", &cfg.JWTIssuer},
		{"SALT", &cfg.Salt},
	} {
		if *m.field, _, err = member[string](o, m.name); err != nil {
			errs = append(errs, fmt.Errorf("ganbauth: config %s: %w", path, err))
		}
	}
	return cfg.withDefaults(), errors.Join(errs...)
}

// readConfig reads the JSON of a conf.json, which people edit with all kinds of editors.
func readConfig(data []byte) (object, error) {
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	switch {
	case isUTF16(data):
		return nil, errors.New("the file is UTF-16, save it as UTF-8")
	case !utf8.Valid(data):
		return nil, errors.New("the file is not UTF-8")
	}
	return readObject(data, func(name string) bool { return name == "JWT_ISSUER" })
}

// isUTF16 recognizes UTF-16 by its byte order mark, or by an ASCII character in two bytes.
func isUTF16(data []byte) bool {
	if len(data) < 2 {
		return false
	}
	head := [2]byte{data[0], data[1]}
	return head == [2]byte{0xff, 0xfe} || head == [2]byte{0xfe, 0xff} || head[0] == 0 || head[1] == 0
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

// endpoints joins AuthBaseURL with AuthPath, TokenPath and /userinfo as the bank's SDKs do. It
// refuses a URL that no secret may be sent to, and reports every fault once.
func (c Config) endpoints() (auth, token, userInfo *url.URL, err error) {
	err = errors.Join(
		checkBaseURL(c.AuthBaseURL),
		checkPath("AuthPath", c.AuthPath),
		checkPath("TokenPath", c.TokenPath),
	)
	if err != nil {
		return nil, nil, nil, err
	}
	base := strings.TrimSuffix(c.AuthBaseURL, "/")
	auth, err1 := url.Parse(base + c.AuthPath)
	token, err2 := url.Parse(base + c.TokenPath)
	userInfo, err3 := url.Parse(base + "/userinfo")
	return auth, token, userInfo, errors.Join(err1, err2, err3)
}

func checkBaseURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("ganbauth: config: AuthBaseURL is no URL")
	case u.User != nil:
		return errors.New("ganbauth: config: AuthBaseURL must not contain userinfo")
	case u.Host == "" || strings.ContainsAny(s, "?#"):
		return errors.New("ganbauth: config: AuthBaseURL must be an absolute URL without a query or a fragment")
	case !secureURL(u):
		return errors.New("ganbauth: config: AuthBaseURL must be https (http only on a loopback address)")
	}
	return nil
}

// checkPath checks what follows AuthBaseURL: a path, and perhaps a query.
func checkPath(field, path string) error {
	_, err := url.Parse(path)
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("ganbauth: config: %s must begin with a slash", field)
	case err != nil || strings.Contains(path, "#"):
		return fmt.Errorf("ganbauth: config: %s must be a path without a fragment", field)
	}
	return nil
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

// MarshalText always fails, and with it encoding/json, encoding/xml and YAML: the text would have
// the salt, or another value in its place that reads back as the salt. Keep a conf.json apart.
func (c Config) MarshalText() ([]byte, error) {
	return nil, errors.New("ganbauth: a Config has a secret and is not to be marshaled")
}
