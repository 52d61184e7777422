package ganbauth

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Token is what the bank's token endpoint issued for one user (RFC 6749 section 5.1).
//
// In a [TokenStore] a Token without an AccessToken is a mark: nobody is connected, and a
// login is under way, or the bank has ended the connection that was here.
//
// A Token is a plain value: copy it freely. It is not safe to write to one Token from
// several goroutines. Formatting a Token with fmt or log/slog shows no secret, and
// encoding/json refuses it; a [TokenStore] uses the fields, or [Token.MarshalBinary]. But
// in an unexported field of a struct of yours fmt reads a Token past its methods, also
// through a pointer: export the field, or give that struct a Format of its own.
type Token struct {
	// AccessToken goes to the bank's API in the header x-access-token. At most 4,096
	// bytes of visible ASCII, which do not begin with "sealed.". In a store it may have 40 KiB:
	// see Options.EncryptionKeys.
	AccessToken string
	// RefreshToken buys the next Token, once. It is empty when the bank granted none (the
	// scope offline_access was not asked for), and in every Token that the Kit gives to
	// handlers. At most 4,096 bytes.
	RefreshToken string
	// TokenType is "Bearer".
	TokenType string
	// Scope holds the granted scopes, separated by single spaces. At most 4,096 bytes.
	Scope string
	// IDToken is the verified ID token of the login. One that comes with a refresh is
	// checked against it (OpenID Connect Core section 12.2) and not kept. It is empty in
	// plain OAuth 2.0. At most 16 KiB.
	IDToken string
	// Subject identifies the user at the bank. It is set from a verified ID token only. At
	// most 255 bytes.
	Subject string
	// Epoch names the login that the token comes from; refreshes keep it. It is at most
	// 64 bytes of visible ASCII and not secret. The kit sets it.
	Epoch string
	// Judged is set in a mark only: it identifies the refresh token that the bank has
	// declared dead. It is at most 64 bytes of visible ASCII and not secret.
	Judged string
	// ExpiresAt is when AccessToken ends, and IssuedAt when it was asked for, both in UTC
	// and whole seconds.
	ExpiresAt, IssuedAt time.Time

	sealed string // the fingerprint of the record that is not sealed and that this mark stands for
}

// Valid reports whether the access token is there and not past its expiry.
func (t *Token) Valid() bool {
	return t != nil && t.AccessToken != "" && time.Now().Before(t.ExpiresAt)
}

// HasScope reports whether the bank granted scope. Scopes are compared exactly, and nobody
// has the empty one.
func (t *Token) HasScope(scope string) bool {
	return t != nil && slices.Contains(strings.Fields(t.Scope), scope)
}

// union lists the strings of all lists once, in their order.
func union(lists ...[]string) []string {
	var all []string
	for _, list := range lists {
		for _, s := range list {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// withoutRefresh returns the copy that handlers and jobs get: only the keeper may spend the
// refresh token.
func (t Token) withoutRefresh() *Token {
	t.RefreshToken = ""
	return &t
}

// Format implements [fmt.Formatter] and shows the scope and the expiry only, whatever the
// verb. [Token] says where fmt does not call it.
func (t Token) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "ganbauth.Token{Scope:%q ExpiresAt:%s [redacted]}", t.Scope, t.ExpiresAt.Format(time.RFC3339))
}

// LogValue implements [slog.LogValuer] and shows the scope and the expiry only.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.String("scope", t.Scope), slog.Time("expires_at", t.ExpiresAt))
}

// MarshalJSON always fails: JSON of a Token ends up in logs and browsers. Stores use
// [Token.MarshalBinary].
func (t Token) MarshalJSON() ([]byte, error) {
	return nil, errors.New("ganbauth: a Token is not for JSON, use MarshalBinary")
}

var (
	_ fmt.Formatter  = Token{}
	_ slog.LogValuer = Token{}
	_ json.Marshaler = Token{}
)

// Fingerprint identifies a record: 43 characters, or "" for a nil Token. It is the same
// for records with the same AccessToken, RefreshToken, Epoch and Judged, and does not
// reveal them. A [Swapper] keeps it beside the record and compares it. A sealed record
// has the fingerprint of what is sealed.
func (t *Token) Fingerprint() string {
	switch {
	case t == nil:
		return ""
	case t.sealed != "":
		return t.sealed
	}
	if fingerprint, data, _ := cutSealed(t.AccessToken); fingerprint != "" && data != "" {
		return fingerprint
	}
	text := make([]byte, 0, 512)
	for _, s := range [...]string{t.Epoch, t.AccessToken, t.RefreshToken, t.Judged} {
		text = strconv.AppendInt(text, int64(len(s)), 10)
		text = append(append(text, ':'), s...)
	}
	sum := sha256.Sum256(text)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// cutSealed takes the access token of a sealed record apart. The fingerprint of what is
// sealed stands in clear, so that a record which is copied to another store keeps it.
func cutSealed(accessToken string) (fingerprint, data string, ok bool) {
	text, ok := strings.CutPrefix(accessToken, sealedPrefix)
	if !ok {
		return "", "", false
	}
	fingerprint, data, _ = strings.Cut(text, ".")
	return fingerprint, data, true
}

const (
	tokenVersion = 2
	sealedPrefix = "sealed." // of an AccessToken that is a sealed token
)

func (t *Token) strings() []*string {
	return []*string{&t.AccessToken, &t.RefreshToken, &t.TokenType, &t.Scope, &t.IDToken, &t.Subject, &t.Epoch, &t.Judged}
}

// MarshalBinary implements [encoding.BinaryMarshaler] with a compact, versioned record,
// secrets included: it is for stores. The error is always nil.
func (t Token) MarshalBinary() ([]byte, error) {
	return t.marshal(), nil
}

func (t *Token) marshal() []byte {
	return appendRecord(tokenVersion, t.ExpiresAt, t.IssuedAt, t.strings())
}

// UnmarshalBinary implements [encoding.BinaryUnmarshaler]. It fails on a record that is
// truncated, has bytes left over, or is of another version, and then leaves t as it was.
func (t *Token) UnmarshalBinary(data []byte) error { return t.unmarshal(string(data)) }

func (t *Token) unmarshal(record string) error {
	var u Token
	if err := readRecord(record, tokenVersion, &u.ExpiresAt, &u.IssuedAt, u.strings()); err != nil {
		return fmt.Errorf("ganbauth: token: %w", err)
	}
	*t = u
	return nil
}

// seconds is a time as a record keeps it.
func seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
