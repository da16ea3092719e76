-- Campaigns that were cancelled, or failed, while their ledger was written: rows of it may wait, and nobody looked.
UPDATE campaign_runs SET waits = true WHERE state = 'ended' AND NOT written;
