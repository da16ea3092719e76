-- What an operator holds stays held until an operator releases it: a tenant's own release leaves it out. Of what is held
-- already the reason tells; where it says of nobody, an operator's it is, who alone can still let it go.
ALTER TABLE recipients ADD held_by_operator bool NOT NULL DEFAULT false;
UPDATE recipients SET held_by_operator = true
 WHERE held AND (reason LIKE 'held by cli:%' OR reason NOT LIKE 'held by %');
