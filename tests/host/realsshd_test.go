package host

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"gitlab.com/gitlab-org/fleeting/fleeting"
	"gitlab.com/gitlab-org/fleeting/fleeting/connector"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
	"golang.org/x/crypto/ssh"
)

// requireRealGuests skips a test if no real sshd can run. If REAL_SSHD is set, the test fails instead.
func requireRealGuests(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "this needs root"
	}
	if _, err := exec.LookPath("/usr/sbin/sshd"); err != nil {
		missing = "this needs Debian's openssh-server"
	}
	if _, err := exec.LookPath("sudo"); err != nil {
		missing = "this needs Debian's sudo"
	}
	if missing != "" && os.Getenv("REAL_SSHD") != "" {
		t.Fatal(missing)
	}
	if missing != "" {
		t.Skip(missing)
	}
}

// realWorld is a simulated VCD whose guests are real OpenSSH servers.
type realWorld struct {
	simulator
	guests *realGuests
}

func startRealWorld(t *testing.T) realWorld {
	t.Helper()
	requireRealGuests(t)
	guests, err := newRealGuests(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		guests.Close()
		if t.Failed() {
			t.Log(guests.Log())
		}
	})
	sim := startSimulator(t, guests.listener.Addr().String())
	guests.Serve(sim.control)
	return realWorld{sim, guests}
}

// run logs in as GitLab Runner does, and runs a command.
func run(t *testing.T, instance fleeting.Instance, command string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	info, err := instance.ConnectInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.ExternalAddr != info.InternalAddr {
		t.Errorf("addresses of a bridged network differ: %s and %s", info.ExternalAddr, info.InternalAddr)
	}
	var stdout, stderr bytes.Buffer
	err = connector.Run(ctx, info, connector.ConnectorOptions{
		RunOptions: connector.RunOptions{Command: command, Stdout: &stdout, Stderr: &stderr},
	})
	return stdout.String() + stderr.String(), err
}

// logsIn creates an instance, logs in, ends the plugin's process, and logs in to the adopted instance.
func (w realWorld) logsIn(t *testing.T, changes map[string]any, credentials provider.ConnectorConfig, expected string) {
	t.Helper()
	const command = "id -un; id -Gn; echo ~; sudo -n id -un 2>/dev/null"
	first := w.live(t, changes, credentials)
	first.Request(1)
	before := first.running(t, 1)[0]
	if said, err := run(t, before, command); err != nil || said != expected {
		t.Errorf("the new instance: %q, %v", said, err)
	}
	first.runner.Kill()

	second := w.live(t, changes, credentials)
	after := second.running(t, 1)[0]
	if after.ID() != before.ID() || after.Cause() != fleeting.CausePreexisted {
		t.Errorf("%s was created and %s was adopted, %v", before.ID(), after.ID(), after.Cause())
	}
	if err := after.Heartbeat(context.Background()); err != nil {
		t.Errorf("the adopted instance: %v", err)
	}
	if said, err := run(t, after, command); err != nil || said != expected {
		t.Errorf("the adopted instance: %q, %v", said, err)
	}
	second.Shutdown(context.Background())
	w.waitForNoVapp(t)
}

const (
	asRoot = "root\nroot\n/root\nroot\n"
	asCI   = "ci\nci docker\n/home/ci\nroot\n"
	asOld  = "old\nold docker\n/srv/old\nroot\n"
)

// TestRealStaticKeys logs in with each type and format of key in the plugin's own tests.
func TestRealStaticKeys(t *testing.T) {
	world := startRealWorld(t)
	keys, err := filepath.Glob("../../src/access/testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, path := range keys {
		name := filepath.Base(path)
		switch name {
		case "dsa", "ed25519.swapped", "encrypted", "k256.sec1", "p256.encrypted8", "p256.explicit", "p256.nopublic", "rsa768":
			continue // The plugin rejects it.
		}
		if strings.HasSuffix(name, ".pub") {
			continue
		}
		tried++
		t.Run(name, func(t *testing.T) {
			key, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			world.logsIn(t, nil, provider.ConnectorConfig{Username: "root", Key: key, UseStaticCredentials: true}, asRoot)
		})
	}
	if tried != 15 {
		t.Errorf("%d keys were tried", tried)
	}
}

func TestRealUsers(t *testing.T) {
	world := startRealWorld(t)
	_, key := newKey(t)
	for user, expected := range map[string]string{"ci": asCI, "old": asOld} {
		t.Run(user, func(t *testing.T) {
			world.logsIn(t, nil, provider.ConnectorConfig{Username: user, Key: key, UseStaticCredentials: true}, expected)
		})
	}
}

func TestRealPasswords(t *testing.T) {
	world := startRealWorld(t)
	for user, expected := range map[string]string{"root": asRoot, "ci": asCI, "old": asOld} {
		for _, password := range []string{`it's "a" $secret\ <&>`, "pä%ss`id`!#*", "END_OF_PASSWORD"} {
			t.Run(user+" "+password, func(t *testing.T) {
				credentials := provider.ConnectorConfig{Username: user, Password: password, UseStaticCredentials: true}
				world.logsIn(t, nil, credentials, expected)
			})
		}
	}
}

func TestRealGeneratedCredentials(t *testing.T) {
	world := startRealWorld(t)
	for user, expected := range map[string]string{"": asRoot, "ci": asCI} {
		for _, seed := range []string{"", "a seed of a good length"} {
			t.Run(user+" "+seed, func(t *testing.T) {
				changes := map[string]any{"credentials_seed": seed}
				world.logsIn(t, changes, provider.ConnectorConfig{Username: user}, expected)
			})
		}
	}
}

// After a change of the seed or token of generated credentials, instances are unhealthy, and no login works.
func TestRealGeneratedCredentialsChange(t *testing.T) {
	world := startRealWorld(t)
	const otherToken = "another-api-token"
	if err := postJSON(world.control+"/admin", map[string]any{"action": "restore_token", "token": otherToken}); err != nil {
		t.Fatal(err)
	}
	seed := func(t *testing.T, seed string) map[string]any { return map[string]any{"credentials_seed": seed} }
	file := func(t *testing.T, token string) map[string]any {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return map[string]any{"token": nil, "token_file": path}
	}
	for name, of := range map[string]struct {
		changes      func(*testing.T, string) map[string]any
		one, another string
	}{
		"seed":       {seed, "a seed of a good length", "another of a good length"},
		"token":      {func(_ *testing.T, token string) map[string]any { return map[string]any{"token": token} }, token, otherToken},
		"token file": {file, token, otherToken},
	} {
		t.Run(name, func(t *testing.T) {
			world.locksOut(t, of.changes(t, of.one), of.changes(t, of.another))
		})
	}
}

func (w realWorld) locksOut(t *testing.T, one, another map[string]any) {
	t.Helper()
	first := w.live(t, one, provider.ConnectorConfig{})
	first.Request(1)
	before := first.running(t, 1)[0]
	if said, err := run(t, before, "id -un"); err != nil || said != "root\n" {
		t.Errorf("%q, %v", said, err)
	}
	first.runner.Kill()

	second := w.live(t, another, provider.ConnectorConfig{})
	after := second.running(t, 1)[0]
	if err := after.Heartbeat(context.Background()); err == nil || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("heartbeat of %s: %v", after.ID(), err)
	}
	info, err := after.ConnectInfo(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(info.Key)
	if err != nil {
		t.Fatal(err)
	}
	guest := net.JoinHostPort(info.InternalAddr, strconv.Itoa(w.guestPort))
	if client, err := dialFrom("127.0.0.1", guest, "root", ssh.PublicKeys(signer)); err == nil {
		client.Close()
		t.Error("a key of another secret was accepted")
	} else if !strings.Contains(err.Error(), "unable to authenticate") {
		t.Error(err)
	}
	second.runner.Kill()

	third := w.live(t, one, provider.ConnectorConfig{})
	back := third.running(t, 1)[0]
	if err := back.Heartbeat(context.Background()); err != nil {
		t.Errorf("heartbeat of %s with the old secret again: %v", back.ID(), err)
	}
	if said, err := run(t, back, "id -un"); err != nil || said != "root\n" {
		t.Errorf("%q, %v", said, err)
	}
	third.Shutdown(context.Background())
	w.waitForNoVapp(t)
}

// The user's own script runs in the guest after the plugin's, before the runner may log in.
func TestRealUsersScript(t *testing.T) {
	world := startRealWorld(t)
	path := filepath.Join(t.TempDir(), "script")
	const script = "#!/bin/bash\n[[ -s ~ci/.ssh/authorized_keys ]] && echo \"it's $1 $BASH\" >/etc/told\n"
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	only := world.live(t, map[string]any{"customization_script_file": path}, provider.ConnectorConfig{Username: "ci"})
	only.Request(1)
	said, err := run(t, only.running(t, 1)[0], "cat /etc/told")
	if err != nil || said != "it's postcustomization /bin/bash\n" {
		t.Errorf("%q, %v", said, err)
	}
	only.Shutdown(context.Background())
	world.waitForNoVapp(t)
}
