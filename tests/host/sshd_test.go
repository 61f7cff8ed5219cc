package host

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// newKey creates a key pair, and returns the signer and the private key in OpenSSH's format.
func newKey(t *testing.T) (ssh.Signer, []byte) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return signer, pem.EncodeToMemory(block)
}

// installs returns a script that writes a key to a folder below the root, with these modes.
func installs(key ssh.PublicKey, home, modes string) string {
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	folderMode, fileMode, _ := strings.Cut(modes, " ")
	return fmt.Sprintf(`[ "$1" = postcustomization ] || exit 0
ssh=$FLEETING_ROOT/%s/.ssh
mkdir -p "$ssh"
echo '# first'  > "$ssh/authorized_keys"
echo '%s' >> "$ssh/authorized_keys"
chmod %s "$ssh"
chmod %s "$ssh/authorized_keys"
`, home, line, folderMode, fileMode)
}

func TestSSHServerAcceptsOnlyTheGuestsKeysAndPasswords(t *testing.T) {
	signer, _ := newKey(t)
	other, _ := newKey(t)
	good := installs(signer.PublicKey(), "root", "700 600")
	chpasswd := `[ "$1" = postcustomization ] || exit 0
printf 'chpasswd\nci:secret\n' > "$FLEETING_ROOT/commands"
`
	guests := map[string]guest{
		"127.0.10.1": {Customized: true, Script: good},
		"127.0.10.2": {Customized: true, Password: "secret"},
		"127.0.10.3": {Customized: false, Script: good, Password: "secret"},
		"127.0.10.4": {Customized: true, Script: installs(signer.PublicKey(), "root", "755 600")},
		"127.0.10.5": {Customized: true, Script: installs(signer.PublicKey(), "root", "700 644")},
		"127.0.10.6": {Customized: true, Script: installs(signer.PublicKey(), "home/ci", "700 600")},
		"127.0.10.7": {Customized: true, Script: good + "exit 3\n"},
		"127.0.10.8": {Customized: true, Script: chpasswd},
	}
	control := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		guest, known := guests[strings.TrimPrefix(r.URL.Path, "/guest/")]
		if !known {
			http.Error(w, `{"error": "no VM has this address"}`, http.StatusBadRequest)
			return
		}
		json.NewEncoder(w).Encode(guest)
	}))
	defer control.Close()
	server, err := newSSHServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.Serve(control.URL)

	key, password := ssh.PublicKeys(signer), ssh.Password
	for _, login := range []struct {
		from, user string
		auth       ssh.AuthMethod
		letIn      bool
	}{
		{"127.0.10.1", "root", key, true},
		{"127.0.10.1", "root", ssh.PublicKeys(other), false},
		{"127.0.10.1", "root", password("secret"), false},
		{"127.0.10.1", "root", password(""), false},
		{"127.0.10.1", "ci", key, false},
		{"127.0.10.2", "root", password("secret"), true},
		{"127.0.10.2", "root", password("Secret"), false},
		{"127.0.10.2", "ci", password("secret"), false},
		{"127.0.10.2", "root", key, false},
		{"127.0.10.3", "root", key, false},
		{"127.0.10.3", "root", password("secret"), false},
		{"127.0.10.4", "root", key, false},
		{"127.0.10.5", "root", key, false},
		{"127.0.10.6", "ci", key, true},
		{"127.0.10.6", "root", key, false},
		{"127.0.10.7", "root", key, false},
		{"127.0.10.8", "ci", password("secret"), true},
		{"127.0.10.8", "ci", password("secre"), false},
		{"127.0.10.9", "root", password(""), false},
	} {
		client, err := dialFrom(login.from, server.Addr(), login.user, login.auth)
		if (err == nil) != login.letIn {
			t.Errorf("%s from %s: accepted %v, expected %v: %v", login.user, login.from, err == nil, login.letIn, err)
		}
		if err == nil {
			client.Close()
		}
	}
	if refused := server.Refused(); len(refused) < 15 || !strings.HasPrefix(refused[0], "root by key from 127.0.10.1:") {
		t.Errorf("refused: %q", refused)
	}
}

func TestSSHServerRunsCommands(t *testing.T) {
	control := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(guest{Customized: true, Password: "secret"})
	}))
	defer control.Close()
	server, err := newSSHServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.Serve(control.URL)
	client, err := dialFrom("127.0.10.1", server.Addr(), "root", ssh.Password("secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if said, err := session.Output("echo 'hello world'"); err != nil || string(said) != "hello world\n" {
		t.Errorf("%q, %v", said, err)
	}
	session, err = client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	err = session.Run("exit 7")
	if exit, ok := err.(*ssh.ExitError); !ok || exit.ExitStatus() != 7 {
		t.Errorf("exit 7: %v", err)
	}
}

// dialFrom logs in from one of this machine's loopback addresses.
func dialFrom(from, to, user string, auth ssh.AuthMethod) (*ssh.Client, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	conn, err := dialer.Dial("tcp", to)
	if err != nil {
		return nil, err
	}
	config := ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second,
	}
	client, channels, requests, err := ssh.NewClientConn(conn, to, &config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(client, channels, requests), nil
}
