-- Finds the mails that are queued, failed or were dropped, and counts those that are queued. Most
-- mails are sent, and are not in the index.
CREATE INDEX user_mail_state ON user_mail (state) WHERE state <> 'sent';
