package ganbauth_test

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

var fullToken = ganbauth.Token{
	AccessToken: "S3CRET-access", RefreshToken: "S3CRET-refresh", TokenType: "Bearer", Scope: "a b",
	IDToken: "S3CRET-id", Subject: "u-1",
	IssuedAt: time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), ExpiresAt: time.Date(2026, 4, 1, 1, 0, 0, 0, time.UTC),
}

// Whatever prints a value of the kit prints no secret of it.
func TestNothingSecretIsPrinted(t *testing.T) {
	cfg := ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "S3CRET-salt"}
	connector, err := ganbauth.NewConnector(clientID, "S3CRET-client-secret-of-32-bytes", ganbauth.AuthBasic, cfg)
	require.NoError(t, err)
	opts := ganbauth.Options{
		RedirectURI: "https://app.example/cb", Scopes: []string{"a"}, EncryptionKeys: [][]byte{[]byte("S3CRET-key-of-thirty-two-bytes!!")},
		Store: ganbauth.NewMemoryStore(), Key: keyIs("k"),
		Logger: slog.New(slog.DiscardHandler),
	}
	kit, err := ganbauth.New(connector, nil, opts)
	require.NoError(t, err)
	token := fullToken
	for name, v := range map[string]any{
		"Token": token, "*Token": &token, "[]Token": []ganbauth.Token{token}, "struct": struct{ T *ganbauth.Token }{&token},
		"Config": cfg, "*Config": &cfg, "Connector": connector, "Options": opts, "*Options": &opts, "Kit": kit,
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				fmt.Fprintf(&out, verb, v)
			}
			for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
				slog.New(h).Info("x", "v", v)
			}
			data, _ := json.Marshal(v)
			out.Write(data)
			require.NotContains(t, out.String(), "S3CRET")
			require.NotContains(t, out.String(), fmt.Sprintf("%x", "S3CRET"))
			require.NotContains(t, out.String(), "83 51 67 82 69 84")
		})
	}
	require.Contains(t, fmt.Sprint(token), `"a b"`)
	var line bytes.Buffer
	slog.New(slog.NewTextHandler(&line, nil)).Info("x", "token", token)
	require.Contains(t, line.String(), `token.scope="a b" token.expires_at=2026-04-01T01:00:00.000Z`)
	require.Contains(t, fmt.Sprint(cfg), "bank.test")
	require.Equal(t, `ganbauth.Kit("bank")`, fmt.Sprint(kit))
	require.Equal(t, "ganbauth.Kit(nil)", fmt.Sprint((*ganbauth.Kit)(nil)))
}

func TestTokenJSONIsRefused(t *testing.T) {
	_, err := json.Marshal(fullToken)
	require.ErrorContains(t, err, "MarshalBinary")
}

func TestTokenBinary(t *testing.T) {
	for name, token := range map[string]ganbauth.Token{"full": fullToken, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			data, err := token.MarshalBinary()
			require.NoError(t, err)
			var got ganbauth.Token
			require.NoError(t, got.UnmarshalBinary(data))
			require.Equal(t, token, got)
			for n := range data {
				before := got
				require.ErrorContains(t, got.UnmarshalBinary(data[:n]), "truncated", "at %d", n)
				require.Equal(t, before, got)
			}
			require.ErrorContains(t, got.UnmarshalBinary(append(data, 0)), "1 bytes left over")
			data[0]++
			require.ErrorContains(t, got.UnmarshalBinary(data), "version")
		})
	}
	t.Run("a length or a number beyond all bounds", func(t *testing.T) {
		data, err := ganbauth.Token{}.MarshalBinary()
		require.NoError(t, err)
		record := data[:len(data)-8] // version and times, without the eight strings
		for _, length := range []string{"\x01", "\xff\xff\xff\xff\x0f", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", strings.Repeat("\xff", 20)} {
			require.ErrorContains(t, new(ganbauth.Token).UnmarshalBinary(append(bytes.Clone(record), length...)), "truncated", "%x", length)
		}
	})
	t.Run("gob uses it", func(t *testing.T) {
		var b bytes.Buffer
		require.NoError(t, gob.NewEncoder(&b).Encode(fullToken))
		var got ganbauth.Token
		require.NoError(t, gob.NewDecoder(&b).Decode(&got))
		require.Equal(t, fullToken, got)
	})
	var _ encoding.BinaryMarshaler = ganbauth.Token{}
}

func TestTokenValid(t *testing.T) {
	require.False(t, (*ganbauth.Token)(nil).Valid())
	require.False(t, (*ganbauth.Token)(nil).HasScope("a"))
	require.False(t, (&ganbauth.Token{AccessToken: "a"}).Valid(), "a token without an expiry is not valid forever")
	require.False(t, (&ganbauth.Token{ExpiresAt: time.Now().Add(time.Hour)}).Valid())
	require.True(t, (&ganbauth.Token{AccessToken: "a", ExpiresAt: time.Now().Add(time.Hour)}).Valid())
}

// Stores keep fingerprints beside their records, so none may ever change.
func TestFingerprintsStay(t *testing.T) {
	for want, token := range map[string]*ganbauth.Token{
		"hTgJinJazOKkACdph_E0dTtRJQA-cMfTZCDU4eUKA2w": {},
		"lQVr_rj7xzALiQWP28HPnhqBnFmTvVhkxttjDVLwP6I": {Epoch: "e", AccessToken: "access", RefreshToken: "refresh", Judged: "j"},
		"Q96lfodRAs4e89TOGCPkzwFIhk8hqXRTqVAAVwnVWAM": {AccessToken: "アクセス", Epoch: "2:ab"},
	} {
		require.Equal(t, want, token.Fingerprint())
	}
}

// What one version has written every later one reads: in a store of the application's,
// sealed in one, and on the sessions' engine.
func TestRecordsStay(t *testing.T) {
	decode := func(s string) []byte {
		data, err := base64.StdEncoding.DecodeString(s)
		require.NoError(t, err)
		return data
	}
	var got ganbauth.Token
	require.NoError(t, got.UnmarshalBinary(decode(
		"AqC445wNgIDjnA0NUzNDUkVULWFjY2Vzcw5TM0NSRVQtcmVmcmVzaAZCZWFyZXIDYSBiCVMzQ1JFVC1pZAN1LTEAAA==")))
	require.Equal(t, fullToken, got)

	inner := ganbauth.NewMemoryStore()
	require.NoError(t, inner.Save(t.Context(), "alice", &ganbauth.Token{AccessToken: "sealed.JgXwpqRdsajVf845luLE_fX_rtIIPbQa-AKQzisNMn4." +
		"4qpF-5xP_MUTSQyuiKGlGM50hS12nb2mGVCpf1kY-jk5zEgrvAyZTAQFtsJwbSdivL_yqtVKWy3ZlC_FrJ7NFxR8vpwoVqQboFeHsdMBxOn60MbgKa1_7GU-SFGSnvw"}))
	opened, err := ganbauth.Seal(inner, key(1)).Load(t.Context(), "alice")
	require.NoError(t, err)
	require.Equal(t, fullToken, *opened)

	sessions := scs.New()
	sessions.Store = memstore.NewWithCleanupInterval(0)
	require.NoError(t, sessions.Store.Commit(";p2bv55-R3YHVn8wqfR9H_xAj_PFBXCDjbLz2udbs2o", decode(
		"JX8DAQL/gAABAgEIRGVhZGxpbmUB/4IAAQZWYWx1ZXMB/4QAAAAQ/4EFAQEEVGltZQH/ggAAACf/gwQBARdtYXBbc3RyaW5nXWludGVyZmFjZSB7fQH/hAAB"+
			"DAEQAAAq/4ABDwEAAABJd4TnAAAAAAD//wEBCGdhbmJhdXRoBnN0cmluZwwCAAAAAQAAAADJBxw6AqC445wNgIDjnA0NUzNDUkVULWFjY2Vzcw5TM0NSRVQt"+
			"cmVmcmVzaAZCZWFyZXIDYSBiCVMzQ1JFVC1pZAN1LTEAAAAAAEw="), time.Now().Add(time.Hour)))
	stored, err := ganbauth.NewSCSStore(sessions).Load(t.Context(), "bank/alice")
	require.NoError(t, err)
	require.Equal(t, fullToken, *stored)
}

// An access token of the bank's that looks like a sealed record is none.
func TestFingerprintOfWhatLooksSealed(t *testing.T) {
	seen := map[string]bool{}
	for _, accessToken := range []string{"sealed.", "sealed.x", "sealed.x.", "sealed..x", "sealed.."} {
		fingerprint := (&ganbauth.Token{AccessToken: accessToken}).Fingerprint()
		require.Len(t, fingerprint, 43, accessToken)
		require.False(t, seen[fingerprint], accessToken)
		seen[fingerprint] = true
	}
}

func TestNoTokenHasNoFingerprint(t *testing.T) {
	require.Empty(t, (*ganbauth.Token)(nil).Fingerprint())
	require.Len(t, new(ganbauth.Token).Fingerprint(), 43)
}
