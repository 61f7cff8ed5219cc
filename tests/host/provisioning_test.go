package host

import (
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/fleeting/integration"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// provision runs fleeting's own conformance test: VMs are made, one is logged in to, all are deleted.
func provision(t *testing.T, credentials provider.ConnectorConfig) {
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	sim, server := startGuests(t)
	credentials.UseStaticCredentials = true
	credentials.ProtocolPort = guestPort
	credentials.Timeout = time.Minute
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logins that were refused: %q", server.Refused())
		}
	})
	integration.TestProvisioning(t, plugin, integration.Config{
		PluginConfig:    sim.pluginConfig(nil),
		ConnectorConfig: credentials,
		MaxInstances:    3,
	})
	sim.waitForNoVapp(t)
}

func TestProvisioningPassword(t *testing.T) {
	for _, user := range []string{"root", "ci"} {
		t.Run(user, func(t *testing.T) {
			provision(t, provider.ConnectorConfig{Username: user, Password: `it's "a" $secret\`})
		})
	}
}

func TestProvisioningKey(t *testing.T) {
	for _, user := range []string{"root", "ci"} {
		t.Run(user, func(t *testing.T) {
			_, private := newKey(t)
			provision(t, provider.ConnectorConfig{Username: user, Key: private})
		})
	}
}
