package ganbtest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/ganbauth/ganbauth"
)

// testSealed tests records that are encrypted, through two kits with EncryptionKeys that
// stand for two processes: what one writes the other reads, and replaces.
func testSealed(t *testing.T, newStore func() ganbauth.TokenStore) {
	bank := NewServer(Options{InProcess: true, RevokeOnReuse: true})
	defer bank.Close()
	connector, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	if err != nil {
		t.Fatal(err)
	}
	store, user := newStore(), uniqueKey()
	var kits [2]*ganbauth.Kit
	for i := range kits {
		kits[i], err = ganbauth.New(connector, nil, ganbauth.Options{
			RedirectURI:    "https://app.example/callback",
			Scopes:         []string{"openid", "offline_access"},
			Store:          store,
			Key:            func(*http.Request) (string, error) { return "", nil },
			EncryptionKeys: [][]byte{bytes.Repeat([]byte{7}, 32)},
			Logger:         slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background()
	connect := func(kit *ganbauth.Kit, life time.Duration) *ganbauth.Token {
		t.Helper()
		token := bank.Token("openid", "offline_access")
		token.ExpiresAt = time.Now().Add(life).Truncate(time.Second)
		if err := kit.SetToken(ctx, user, token); err != nil {
			t.Fatalf("SetToken: %v", err)
		}
		return token
	}
	want := func(kit *ganbauth.Kit, want string) {
		t.Helper()
		if got, err := kit.Token(ctx, user); err != nil || got.AccessToken != want {
			t.Fatalf("the token of another process is not the one that was set: error %v", err)
		}
	}
	for i := range 4 {
		want(kits[1-i%2], connect(kits[i%2], time.Hour).AccessToken)
	}
	expired := connect(kits[0], -time.Minute)
	refreshed, err := kits[1].Token(ctx, user)
	if err != nil || refreshed.AccessToken == expired.AccessToken {
		t.Fatalf("a sealed token was not refreshed: error %v", err)
	}
	want(kits[0], refreshed.AccessToken)
	if err := kits[0].Disconnect(ctx, user); err != nil {
		t.Fatalf("Disconnect: %v", err)
	}
	if _, err := kits[1].Token(ctx, user); !errors.Is(err, ganbauth.ErrLoginRequired) {
		t.Errorf("after Disconnect: got error %v, want ErrLoginRequired", err)
	}
	want(kits[0], connect(kits[1], time.Hour).AccessToken)
}
