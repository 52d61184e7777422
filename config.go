package ganbauth

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// minSalt is the length in bytes of a salt that New does not warn of.
const minSalt = 16

// Config says where the bank is, and has the application's salt. It unmarshals from the
// conf.json that every official SDK of the bank reads. [NewConnector] copies it.
//
// fmt and log/slog show it without the salt, unless it is in an unexported field of a
// struct, where fmt reads it past its methods. Marshaling it fails, as JSON or gob.
type Config struct {
	// AuthBaseURL is the root of the authorization server: https, or http on a loopback
	// address. Required.
	AuthBaseURL string `json:"AUTH_BASE_URL"`
	// AuthPath and TokenPath follow AuthBaseURL. They begin with a slash and may have a
	// query. Defaults: "/authorization" and "/token".
	AuthPath  string `json:"AUTH_PATH"`
	TokenPath string `json:"TOKEN_PATH"`
	// JWTIssuer is the exact iss of the bank's ID tokens. The bank's SDKs disagree about
	// its trailing slash, which counts. OpenID Connect needs it. Plain OAuth 2.0 does
	// not.
	JWTIssuer string `json:"JWT_ISSUER"`
	// Salt is a secret of the application's own, random bytes. The state and the keys of
	// the cookies are made with it, so all instances of an application need the same one.
	// [New] warns of one that is shorter than 16 bytes. Required.
	Salt string `json:"SALT"`
	// HTTPClient lends its Transport, and its Timeout if that is shorter than 30 seconds.
	// Its redirect policy and its cookie jar are not used. It is not changed. The Transport
	// serves the token endpoint and the API: do not set its MaxConnsPerHost, or slow calls
	// of the API take the connections that token requests need. Default: for either of the
	// two net/http's default transport, but with up to 1,024 connections, which are kept,
	// and 64 KiB of response headers.
	//
	// A request without a body reaches a RoundTripper of your own with its Idempotency-Key
	// under the raw name: Header["idempotency-key"], which Header.Get does not find. By the
	// canonical name, net/http behind it would repeat the request.
	HTTPClient *http.Client `json:"-"`
}

// Production returns the Config of the bank's production environment. For salt see
// [Config].
func Production(salt string) Config {
	return Config{
		AuthBaseURL: "https://api.gmo-aozora.com/ganb/api/auth/v1",
		JWTIssuer:   "https://api.gmo-aozora.com/",
		Salt:        salt,
	}.withDefaults()
}

// Staging returns the Config of the bank's staging environment. For salt see [Config].
func Staging(salt string) Config {
	return Config{
		AuthBaseURL: "https://stg-api.gmo-aozora.com/ganb/api/auth/v1",
		JWTIssuer:   "https://stg-api.gmo-aozora.com/",
		Salt:        salt,
	}.withDefaults()
}

// Sunabar returns the Config of the bank's public sandbox. For salt see [Config]. The
// issuer of its ID tokens is not documented: set JWTIssuer if the ID tokens are refused
// for their iss.
func Sunabar(salt string) Config {
	return Config{
		AuthBaseURL: "https://api.sunabar.gmo-aozora.com/auth/v1",
		JWTIssuer:   "https://api.sunabar.gmo-aozora.com/",
		Salt:        salt,
	}.withDefaults()
}

// LoadConfig reads a conf.json, in UTF-8 with or without a byte order mark. JWT_ISSUER
// may occur twice, as in the file of the bank's Node SDK: the last one counts. Errors
// name the file and the fault, and quote no value. Missing paths get their defaults.
// [NewConnector] checks the values.
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

// readConfig reads the JSON of a conf.json as editors and SDKs leave it.
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

// isUTF16 recognizes UTF-16 by its byte order mark, or by an ASCII character in two
// bytes.
func isUTF16(data []byte) bool {
	if len(data) < 2 {
		return false
	}
	head := [2]byte{data[0], data[1]}
	return head == [2]byte{0xff, 0xfe} || head == [2]byte{0xfe, 0xff} || head[0] == 0 || head[1] == 0
}

func (cfg Config) withDefaults() Config {
	if cfg.AuthPath == "" {
		cfg.AuthPath = "/authorization"
	}
	if cfg.TokenPath == "" {
		cfg.TokenPath = "/token"
	}
	return cfg
}

// endpoints joins AuthBaseURL with AuthPath, TokenPath and /userinfo, as the bank's SDKs
// do. It refuses a URL to which no secret may be sent. It reports every fault once.
func (cfg Config) endpoints() (auth, token, userInfo *url.URL, err error) {
	err = errors.Join(
		checkBaseURL(cfg.AuthBaseURL),
		checkPath("AuthPath", cfg.AuthPath),
		checkPath("TokenPath", cfg.TokenPath),
	)
	if err != nil {
		return nil, nil, nil, err
	}
	base := strings.TrimSuffix(cfg.AuthBaseURL, "/")
	auth, err1 := url.Parse(base + cfg.AuthPath)
	token, err2 := url.Parse(base + cfg.TokenPath)
	userInfo, err3 := url.Parse(base + "/userinfo")
	return auth, token, userInfo, errors.Join(err1, err2, err3)
}

// checkBaseURL checks AuthBaseURL, which it does not quote, as it could contain a
// password.
func checkBaseURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("ganbauth: config: AuthBaseURL is no URL")
	case u.User != nil:
		return errors.New("ganbauth: config: AuthBaseURL must not contain userinfo")
	case u.Host == "" || strings.ContainsAny(s, "?#"):
		return errors.New("ganbauth: config: AuthBaseURL must be an absolute URL without a query or a fragment")
	case !hasHost(u):
		return errors.New("ganbauth: config: AuthBaseURL must have a host, and a port from 1 to 65535 if it has one")
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

// hasHost reports whether u has a host, and a port that there is if it has one.
func hasHost(u *url.URL) bool {
	port := u.Port()
	n, err := strconv.ParseUint(port, 10, 16)
	return u.Hostname() != "" && (err == nil && n > 0 || port == "" && !strings.HasSuffix(u.Host, ":"))
}

// secureURL reports whether a secret may be sent to u.
func secureURL(u *url.URL) bool {
	return u.Scheme == "https" || u.Scheme == "http" && isLoopback(u.Hostname())
}

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// Format implements [fmt.Formatter]. It hides the salt, whatever the verb. [Config] says
// where fmt does not call it.
func (cfg Config) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "ganbauth.Config{AuthBaseURL:%q AuthPath:%q TokenPath:%q JWTIssuer:%q Salt:[redacted]}",
		cfg.AuthBaseURL, cfg.AuthPath, cfg.TokenPath, cfg.JWTIssuer)
}

// MarshalText always fails, and so do encoding/json and other encodings that use it. The
// text would show the salt, or something in its place that reads back as the salt.
func (cfg Config) MarshalText() ([]byte, error) { return nil, errMarshal }

// MarshalBinary always fails, as MarshalText does, and so does encoding/gob.
func (cfg Config) MarshalBinary() ([]byte, error) { return nil, errMarshal }

var errMarshal = errors.New("ganbauth: a Config has a secret and is not to be marshaled")

// hostPort spells out the port of http or https, so that equal hosts compare equal.
func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "http":
		port = "80"
	default:
		port = "443"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
